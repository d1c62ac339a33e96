//! Keys that are refused for ever.

use kubeveil_api::announcement::NotFlipped;
use kubeveil_core::action::Action;
use kubeveil_keys::PublicKey;
use kubeveil_linux::fake::FakeKernel;

use super::{
    super::bench::{Bench, Shared, announce_keys},
    key, names, said,
};
use crate::node::Node;

/// A key of another node that was revoked once is not spoken to again: not when the list is emptied, not by another daemon, not when its
/// node announces it anew.
#[test]
fn a_peers_revoked_key_is_refused_for_ever() {
    let (mut bench, mut node) = Bench::settled(3);
    let stolen = bench.keys[0].public();
    let revoked = |bench: &Bench, keys: &[PublicKey]| {
        let keys = keys.to_vec();
        bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").revoked_keys = keys);
    };
    let ends = |bench: &mut Bench, node: &mut Node<Shared>| {
        bench.settle(node);
        assert!(bench.truth().tunnels.values().all(|device| !device.peers.contains_key(&stolen)));
        assert_eq!(bench.tunnelled(), 1);
    };
    revoked(&bench, &[stolen]);
    ends(&mut bench, &mut node);
    revoked(&bench, &[]);
    ends(&mut bench, &mut node);
    let mut node = bench.restart(node);
    ends(&mut bench, &mut node);
    bench.says(2, Some(announce_keys(2, &[(0, &bench.keys[0])], names(&["node-3"]))));
    ends(&mut bench, &mut node);
    let told = node.problems();
    assert!(
        told.iter().any(|problem| problem.object == "Node node-2" && problem.message.contains("revoked")),
        "{told:?}"
    );
    let fresh = key();
    bench.kernel.with(|k| k.answer(fresh.public()));
    bench.says(2, Some(announce_keys(2, &[(0, &fresh)], NotFlipped::nobody())));
    bench.settle(&mut node);
    assert_eq!(bench.tunnelled(), 2);
}

/// That a key is refused is known, whatever else is not: nobody waits for the rest of the cluster to be told of.
#[test]
fn a_revoked_key_goes_though_not_all_is_known() {
    let (mut bench, mut node) = Bench::settled(3);
    let stolen = bench.keys[0].public();
    bench.world.change(|said| {
        said.whole = false;
        said.snapshot.mesh.as_mut().expect("mesh").revoked_keys.push(stolen);
    });
    bench.settle(&mut node);
    assert!(bench.truth().tunnels.values().all(|device| !device.peers.contains_key(&stolen)));
    assert_eq!(bench.tunnelled(), 1);
    // So it is with its own, though the last rotation was of some nodes, by labels that are not told of now.
    let own = said(&bench).generations()[0].public_key;
    bench.world.change(|said| {
        let mesh = said.snapshot.mesh.as_mut().expect("mesh");
        mesh.revoked_keys.push(own);
        let rotation = r#"{"nodeSelector":{"matchLabels":{"pool":"edge"}}}"#;
        mesh.rotation = Some(serde_json::from_str(rotation).expect("a rotation"));
    });
    bench.settle(&mut node);
    let device = bench.truth().tunnels["kubeveil0"].public_key;
    assert!(device.is_some_and(|key| key != own), "{device:?}");
}

/// Its own key is revoked: it has another at once, of the same generation.
#[test]
fn a_revoked_key_is_replaced() {
    let (mut bench, mut node) = Bench::settled(3);
    let before = said(&bench).generations()[0].public_key;
    bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").revoked_keys.push(before));
    bench.settle(&mut node);
    let after = said(&bench);
    assert_eq!(after.generations().len(), 1);
    assert_ne!(after.generations()[0].public_key, before);
    assert_eq!(bench.truth().tunnels["kubeveil0"].public_key, Some(after.generations()[0].public_key));
    bench.kernel.with(FakeKernel::nobody_answers);
}

/// A daemon that starts with a revoked key on its disk sets up no device with it and announces it to nobody: not where it was revoked while
/// no daemon ran, nor where somebody put the file back after the list was emptied.
#[test]
fn a_revoked_key_on_disk_is_not_taken_up() {
    let (mut bench, mut node) = Bench::settled(3);
    let path = bench.dir.path().join("keys/generation-0.key");
    let file = std::fs::read(&path).expect("its file");
    let stolen = said(&bench).generations()[0].public_key;
    let list = |bench: &Bench, keys: &[PublicKey]| {
        let keys = keys.to_vec();
        bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").revoked_keys = keys);
    };
    let mut before = vec![stolen];
    for (deed, revoked) in [("while no daemon ran", &[stolen][..]), ("before, and the file is put back", &[])]
    {
        list(&bench, revoked);
        if revoked.is_empty() {
            std::fs::write(&path, &file).expect("put back");
        }
        // As after a reboot: every device has to be set up.
        bench.kernel.with(|k| k.delete_link("kubeveil0"));
        bench.tried();
        bench.world.change(|said| said.snapshot.node_mut("node-1").expect("node").announcement = None);
        node = bench.restart(node);
        for second in 0..20 {
            bench.seconds += 1;
            node.pass(bench.now());
            let said = bench.world.said().snapshot.nodes["node-1"].announcement.clone();
            let tells = said.is_some_and(|said| said.contains(&stolen.to_string()));
            assert!(!tells, "revoked {deed}: it is announced after {second} s");
        }
        let is_set = |action: &Action| matches!(action, Action::ConfigureTunnel { key: Some((_, public)), .. } if *public == stolen);
        assert!(!bench.tried().iter().any(is_set), "revoked {deed}: a device has it");
        let now = said(&bench).generations()[0].public_key;
        assert!(!before.contains(&now), "revoked {deed}: {now} was there before");
        assert_eq!(bench.truth().tunnels["kubeveil0"].public_key, Some(now), "revoked {deed}");
        assert_ne!(std::fs::read(&path).expect("its file"), file, "revoked {deed}: its file stands");
        assert_eq!(bench.tunnelled(), 2, "revoked {deed}");
        before.push(now);
    }
}
