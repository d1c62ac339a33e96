//! Writes the seeds: `seeds FOLDER`. To be run again when what they hold is laid out in another way.

use std::{error::Error, fs, net::IpAddr, path::Path};

use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped};
use kubeveil_keys::{Generation, PrivateKey};
use kubeveil_tests_fuzz::{HEAD, NODE, UID};
use kubeveil_verdict::testing::{Build, Envelope, Extension, Transport};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("seeds FOLDER")?;
    let folder = Path::new(&folder);
    for (target, seeds) in
        [("announcement", announcements()?), ("manifests", manifests()), ("packet", packets()?)]
    {
        fs::create_dir_all(folder.join(target))?;
        for (name, seed) in seeds {
            fs::write(folder.join(target).join(name), seed)?;
        }
    }
    Ok(())
}

type Seeds = Vec<(String, Vec<u8>)>;

fn announcements() -> Result<Seeds, Box<dyn Error>> {
    let keys = [1, 2].map(|byte| PrivateKey::copied_from(&[byte; 32]));
    let entry = |generation: u32, state| -> Result<GenerationEntry, Box<dyn Error>> {
        let number = Generation::new(generation);
        let port = number.port(51_871).and_then(std::num::NonZeroU16::new).ok_or("no port")?;
        let public_key = keys[generation as usize].public();
        Ok(GenerationEntry { generation: number, public_key, port, state })
    };
    let (old, new) = (entry(0, GenerationState::Retiring)?, entry(1, GenerationState::Active)?);
    let one = Announcement::sign(NODE, UID, vec![new], NotFlipped::nobody(), &[&keys[1]])?;
    let names = NotFlipped::of(["node-2", "node-3"].map(str::to_owned));
    let two = Announcement::sign(NODE, UID, vec![old, new], names, &[&keys[0], &keys[1]])?;
    let many = Announcement::sign(NODE, UID, vec![new], NotFlipped::Many, &[&keys[1]])?;
    let of_another = Announcement::sign("node-2", UID, vec![new], NotFlipped::nobody(), &[&keys[1]])?;
    let mut seeds: Seeds = [("one", one), ("two", two), ("many", many), ("of-another", of_another)]
        .map(|(name, announcement)| (name.to_owned(), announcement.to_json().into_bytes()))
        .into();
    seeds.push(("version".to_owned(), br#"{"version":2,"keys":[]}"#.to_vec()));
    Ok(seeds)
}

fn manifests() -> Seeds {
    let mesh = "apiVersion: kubeveil.io/v1alpha1\nkind: EncryptionMesh\nmetadata: {name: default}\nspec:\n  mode: require\n  podCIDRs: [10.244.0.0/16, \"fd00:244::/32\"]\n  nodeCIDRs: [192.0.2.0/24]\n  keyGeneration: 0\n  revokedKeys: []\n  adoption: {deadline: 2027-01-31T12:00:00Z}\n";
    let node = |n: u8| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{n}, uid: u{n}, annotations: {{kubeveil.io/announcement: said}}}}\nspec: {{podCIDR: 10.244.{n}.0/24, podCIDRs: [10.244.{n}.0/24, \"fd00:244:{n}::/64\"]}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.0.2.{n}}}, {{type: Hostname, address: n}}]}}\n"
        )
    };
    let list = format!(
        "{mesh}---\napiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Node, metadata: {{name: b, uid: v}}}}\n- {{apiVersion: v1, kind: Pod, metadata: {{name: p}}}}\n"
    );
    let folder = [mesh.to_owned(), format!("{}---\n{}", node(1), node(2)), node(2)].join("\n%%\n");
    let json = format!(
        "{mesh}\n%%\n{}",
        r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","uid":"u"},"spec":{"podCIDRs":["10.244.9.0/24"]}}"#
    );
    [("mesh", mesh.to_owned()), ("node", node(1)), ("list", list), ("folder", folder), ("json", json)]
        .map(|(name, text)| (name.to_owned(), text.into_bytes()))
        .into()
}

fn packets() -> Result<Seeds, Box<dyn Error>> {
    let ends: [(&str, &str, &str); 5] = [
        ("pods", "10.244.1.5", "10.244.2.7"),
        ("pods6", "fd00:244:1::5", "fd00:244:2::7"),
        ("node", "192.0.2.1", "192.0.2.2"),
        ("back", "10.244.3.7", "10.244.1.5"),
        ("unowned", "10.244.1.5", "10.244.200.1"),
    ];
    let mut seeds = Seeds::new();
    for (name, from, to) in ends {
        let (from, to): (IpAddr, IpAddr) = (from.parse()?, to.parse()?);
        let plain = |transport| Build::new(from, to, transport);
        let inner = Box::new(plain(Transport::Udp(40_000, 53)));
        let builds = [
            ("udp", plain(Transport::Udp(40_000, 53))),
            ("wireguard", plain(Transport::Udp(51_871, 51_871))),
            ("syn", plain(Transport::Tcp(40_000, 80, Some(vec![])))),
            ("echo", plain(Transport::Echo(7, false))),
            ("error", plain(Transport::Unreachable(inner.clone()))),
            ("vxlan", plain(Transport::Envelope(Envelope::Vxlan, inner.clone()))),
            ("geneve", plain(Transport::Envelope(Envelope::Geneve(2), inner.clone()))),
            ("ip", plain(Transport::Envelope(Envelope::Ip, inner.clone()))),
            ("gre", plain(Transport::Envelope(Envelope::Gre(true), inner))),
            ("fragment", Build { fragment: Some((20, true)), ..plain(Transport::Udp(1, 2)) }),
            ("tagged", Build { tags: 2, ..plain(Transport::Udp(1, 2)) }),
            (
                "headers",
                Build {
                    extensions: vec![Extension::Options(0, 1), Extension::Options(60, 0), Extension::Atomic],
                    ..plain(Transport::Udp(1, 2))
                },
            ),
            ("provider", Build { tags: 2, provider_tags: 1, ..plain(Transport::Udp(1, 2)) }),
        ];
        for (index, (kind, build)) in builds.into_iter().enumerate() {
            let protocol = match build.ether_type() {
                0x0800 => 0,
                0x86dd => 1,
                0x88a8 => 3,
                _ => 2,
            };
            let program = u8::try_from(index % 5)?;
            let head: [u8; HEAD] = [program, 0, 2, 0, protocol, 1, 0xf0, 0];
            seeds.push((format!("{name}-{kind}"), [&head[..], &build.network()].concat()));
        }
    }
    Ok(seeds)
}
