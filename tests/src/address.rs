//! Who has which address in the lab.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// How many nodes a lab may have: a decimal number is read as hexadecimal in `2001:db8::N`, and both
/// readings have to stay inside their prefixes.
pub const MAX_NODES: u8 = 32;

/// One of the two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Which families a lab has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Families {
    /// Both.
    #[default]
    Dual,
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
}

impl Families {
    /// The families, IPv4 first.
    pub fn all(self) -> &'static [Family] {
        match self {
            Self::Dual => &[Family::V4, Family::V6],
            Self::Ipv4 => &[Family::V4],
            Self::Ipv6 => &[Family::V6],
        }
    }

    /// The first family's value where both are there.
    pub fn first<T>(self, value: impl Fn(Family) -> T) -> T {
        value(self.all()[0])
    }

    /// A value of each family.
    pub fn map<T>(self, value: impl FnMut(Family) -> T) -> Vec<T> {
        self.all().iter().copied().map(value).collect()
    }
}

/// A node, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u8);

impl Node {
    /// Its name: namespace, folder and Kubernetes object alike.
    pub fn name(self) -> String {
        format!("node-{}", self.0)
    }

    /// Its address on `eth0`.
    pub fn address(self, family: Family) -> IpAddr {
        parse(&match family {
            Family::V4 => format!("192.0.2.{}", self.0),
            Family::V6 => format!("2001:db8::{}", self.0),
        })
    }

    /// The hardware address of its `eth0`: a capture reads more easily.
    pub fn mac(self) -> String {
        format!("02:00:00:00:00:{:02x}", self.0)
    }

    /// The prefix of its pods.
    pub fn pod_cidr(self, family: Family) -> String {
        match family {
            Family::V4 => format!("10.244.{}.0/24", self.0),
            Family::V6 => format!("fd00:244:{}::/64", self.0),
        }
    }

    /// What its pods route by: the address of its bridge `cni0`.
    pub fn gateway(self, family: Family) -> IpAddr {
        parse(&match family {
            Family::V4 => format!("10.244.{}.1", self.0),
            Family::V6 => format!("fd00:244:{}::1", self.0),
        })
    }

    /// Its two pods.
    pub fn pods(self) -> [Pod; 2] {
        [Pod { node: self, letter: 'a' }, Pod { node: self, letter: 'b' }]
    }
}

/// A pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    /// Where it runs.
    pub node: Node,
    /// `a` or `b`.
    pub letter: char,
}

impl Pod {
    /// Its name: namespace and Kubernetes object alike.
    pub fn name(self) -> String {
        format!("pod-{}{}", self.node.0, self.letter)
    }

    /// Its address.
    pub fn address(self, family: Family) -> IpAddr {
        let last = if self.letter == 'a' { 10 } else { 11 };
        parse(&match family {
            Family::V4 => format!("10.244.{}.{last}", self.node.0),
            Family::V6 => format!("fd00:244:{}::{last}", self.node.0),
        })
    }
}

impl FromStr for Pod {
    type Err = anyhow::Error;

    /// Reads `1a` or `pod-1a`.
    fn from_str(text: &str) -> Result<Self> {
        let short = text.strip_prefix("pod-").unwrap_or(text);
        let letter = short.chars().last().filter(|letter| matches!(letter, 'a' | 'b'));
        let Some(letter) = letter else {
            bail!("{text}: a pod is named like 1a or 2b");
        };
        let number = short[..short.len() - 1]
            .parse()
            .with_context(|| format!("{text}: a pod is named like 1a or 2b"))?;
        Ok(Self { node: Node(number), letter })
    }
}

/// The nodes of a lab.
pub fn nodes(count: u8) -> impl Iterator<Item = Node> + Clone {
    (1..=count).map(Node)
}

/// The addresses of all pods of a lab.
pub fn pod_addresses(count: u8, families: Families) -> Vec<IpAddr> {
    nodes(count).flat_map(Node::pods).flat_map(|pod| families.map(|family| pod.address(family))).collect()
}

/// The range of all pods: the mesh's `podCIDRs`.
pub fn pod_range(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:244::/32",
    }
}

/// The range of all nodes: the mesh's `nodeCIDRs`.
pub fn node_range(family: Family) -> &'static str {
    match family {
        Family::V4 => "192.0.2.0/24",
        Family::V6 => "2001:db8::/64",
    }
}

fn parse(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| unreachable!("{text} was written by this file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_addresses() {
        let pod: Pod = "2b".parse().expect("a pod");
        assert_eq!(pod.name(), "pod-2b");
        assert_eq!(pod.address(Family::V4).to_string(), "10.244.2.11");
        assert_eq!(pod.address(Family::V6).to_string(), "fd00:244:2::11");
        assert_eq!(pod.node.address(Family::V6).to_string(), "2001:db8::2");
        assert!("2c".parse::<Pod>().is_err());
        assert!("b".parse::<Pod>().is_err());
    }

    #[test]
    fn no_address_is_given_twice() {
        let mut all = pod_addresses(MAX_NODES, Families::Dual);
        for node in nodes(MAX_NODES) {
            all.extend([Family::V4, Family::V6].map(|family| node.address(family)));
            all.extend([Family::V4, Family::V6].map(|family| node.gateway(family)));
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
