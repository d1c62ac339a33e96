//! Reading a folder: two files and an announcement, apart by a line of their own.
#![no_main]

use kubeveil_core::ownership::{Class, Owners, assign};
use kubeveil_tests_fuzz::is_fit_to_print;
use libfuzzer_sys::fuzz_target;

/// Between the files.
const NEXT: &str = "\n%%\n";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let names = ["a.yaml", "b.yaml", "announcements/node-2.yaml"];
    let files: Vec<_> = names.into_iter().zip(text.split(NEXT)).collect();
    let state = kubeveil_manifests::read_once(&files);
    for problem in &state.problems {
        is_fit_to_print(&problem.to_string());
        assert!(problem.object.starts_with("file ") && !problem.advice.is_empty(), "{problem}");
    }
    let snapshot = state.knowledge.snapshot();
    for (name, node) in &snapshot.nodes {
        is_fit_to_print(name);
        assert!(!node.uid.is_empty());
        assert!(node.pod_cidrs.iter().all(|net| *net == net.trunc()));
    }
    // Whatever nodes claim, they get it inside of the mesh's ranges only, and no two of them the same address.
    let Some(mesh) = &snapshot.mesh else { return };
    let assignment = assign(&state.knowledge, mesh, &Owners::new());
    for (net, (node, class)) in &assignment.prefixes {
        let ranges = if *class == Class::Pods { &mesh.pod_cidrs } else { &mesh.node_cidrs };
        assert!(net.prefix_len() > 0 && ranges.iter().any(|range| range.contains(net)), "{net} of {node}");
        let others = assignment.prefixes.iter().filter(|(_, (other, _))| other != node);
        for (other, (owner, _)) in others {
            assert!(!net.contains(other), "{net} of {node} holds {other} of {owner}");
        }
    }
    assignment.problems.iter().for_each(|problem| is_fit_to_print(&problem.to_string()));
});
