//! Which of a node's addresses the outer packets go to.

use std::net::IpAddr;

/// The address of `theirs` that both ends choose: IPv4 where both have it (20 bytes less of
/// header), else IPv6. The rule is symmetric, so both ends agree without a word.
pub fn choose(ours: &[IpAddr], theirs: &[IpAddr]) -> Option<IpAddr> {
    [IpAddr::is_ipv4, IpAddr::is_ipv6].iter().find_map(|family| {
        ours.iter().any(family).then_some(())?;
        theirs.iter().copied().find(family)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|a| a.parse().expect("address")).collect()
    }

    #[test]
    fn both_ends_choose_one_family() {
        let dual = ips(&["2001:db8::1", "192.0.2.1"]);
        let v4 = ips(&["192.0.2.2"]);
        let v6 = ips(&["2001:db8::3"]);
        assert_eq!(choose(&dual, &v4), Some(v4[0]));
        assert_eq!(choose(&v4, &dual), Some(dual[1]));
        assert_eq!(choose(&dual, &v6), Some(v6[0]));
        assert_eq!(choose(&dual, &dual), Some(dual[1]));
        assert_eq!(choose(&v4, &v6), None);
    }
}
