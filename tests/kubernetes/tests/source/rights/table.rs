//! The table of SECURITY.md, made from the attacks.

use std::{env, fmt::Write as _, fs, path::Path};

use super::{
    attack::{Attack, Outcome},
    nodes, objects,
};

/// Set to anything, it makes the test write what it finds missing.
const WRITE: &str = "KUBEVEIL_WRITE";
const BEGIN: &str = "<!-- this table is made by tests/kubernetes/tests/source/rights/table.rs -->\n";
const END: &str = "<!-- up to here -->\n";

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NoRight => "-",
        Outcome::Policy(_) => "refused by policy",
        Outcome::Restricted(_) => "refused by NodeRestriction",
        Outcome::Ignored => "ignored",
        Outcome::Itself => "**this node only**",
        Outcome::Can => "**can**",
    }
}

fn line(text: &mut String, attack: &Attack) {
    let [agent, kubelet, controller, crds, uninstall] = attack.outcomes.map(word);
    let (what, name) = (attack.what, attack.name);
    writeln!(text, "| {what} | {agent} | {kubelet} | {controller} | {crds} | {uninstall} | `{name}` |")
        .unwrap();
}

fn table() -> String {
    let mut text = "| deed | agent | kubelet | controller | hook `apply-crds` | hook `uninstall` | test |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    nodes::ALL.iter().chain(objects::ALL).for_each(|attack| line(&mut text, attack));
    text
}

/// It says what the attacks show.
pub(crate) fn the_table_says_what_is_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../SECURITY.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let wanted = table();
    if env::var_os(WRITE).is_some() {
        fs::write(&path, [before, BEGIN, &wanted, END, after].concat()).unwrap();
    } else {
        assert!(found == wanted, "not what is tested; with {WRITE}=1 this test mends it:\n{wanted}");
    }
}
