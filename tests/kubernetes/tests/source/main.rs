//! The sources, folder and API server, held to one suite; and the latter on a real API server that fails in many ways.
#![expect(clippy::print_stdout, reason = "a test runner's output is the point of it")]
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod agent;
mod bypasses;
mod charts;
mod check;
mod controller;
mod definitions;
mod ending;
mod mischief;
mod peers;
mod rights;
mod rotation;
mod selectors;
mod slices;
mod suite;
mod told;
mod troubles;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use kubeveil_tests_kubernetes::{
    cluster::{self, InApiServer},
    server::{self, Server},
    world::InFolder,
};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// The one server of all tests; `None` where there can't be one.
type Shared = Arc<Mutex<Option<Server>>>;

/// A test on it.
type OnServer = fn(&mut Server);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share the server, and it ends with the thread that started it.
    arguments.test_threads = Some(1);
    let missing = server::missing();
    let shared = Shared::default();
    if missing.is_none() && !arguments.list {
        let server = Server::start().unwrap();
        cluster::install_definitions(&server).unwrap();
        *shared.lock().unwrap() = Some(server);
    }
    let mut trials = Vec::new();
    for (name, case) in suite::CASES {
        trials.push(Trial::test(format!("suite::folder::{name}"), move || {
            told(|| case(&mut InFolder::new(tempfile::tempdir().unwrap().path())))
        }));
        let on_server = move |server: &mut Server| case(&mut InApiServer::new(server).unwrap());
        trials.push(trial(&format!("suite::kubernetes::{name}"), &shared, missing.clone(), on_server));
        let on_server = move |server: &mut Server| case(&mut peers::InSlices::new(server));
        trials.push(trial(&format!("suite::slices::{name}"), &shared, missing.clone(), on_server));
    }
    let on_server: &[(&str, OnServer)] = &[
        (
            "agent::peers_come_from_nodes_and_outlive_the_api_server",
            agent::peers_come_from_nodes_and_outlive_the_api_server,
        ),
        ("rotation::one_of_two_is_told_of_the_other", rotation::one_of_two_is_told_of_the_other),
        ("rotation::nobody_asks_in_anothers_name", rotation::nobody_asks_in_anothers_name),
        ("rotation::nobody_does_anything_in_anothers_name", rotation::nobody_does_anything_in_anothers_name),
        ("bypasses::nobody_writes_in_anothers_name", bypasses::nobody_writes_in_anothers_name),
        ("bypasses::an_agent_that_is_gone_is_known", bypasses::an_agent_that_is_gone_is_known),
        (
            "rotation::the_controller_begins_what_is_scheduled",
            rotation::the_controller_begins_what_is_scheduled,
        ),
        ("check::it_finds_what_stands_against_us", check::it_finds_what_stands_against_us),
        ("check::it_looks_at_what_is_installed", check::it_looks_at_what_is_installed),
        ("check::its_probes_come_and_go", check::its_probes_come_and_go),
        ("check::a_range_is_approved_by_one_command", check::a_range_is_approved_by_one_command),
        (
            "controller::it_tells_how_far_the_cluster_has_got",
            controller::it_tells_how_far_the_cluster_has_got,
        ),
        (
            "controller::what_another_wrote_over_is_written_anew",
            controller::what_another_wrote_over_is_written_anew,
        ),
        ("controller::it_begins_what_is_scheduled", controller::it_begins_what_is_scheduled),
        ("controller::it_tells_other_nodes_of_exceptions", controller::it_tells_other_nodes_of_exceptions),
        ("controller::pods_become_others", slices::pods_become_others),
        ("ending::pods_are_held_until_they_are_gone", ending::pods_are_held_until_they_are_gone),
        ("controller::a_rotation_is_told_of", told::a_rotation_is_told_of),
        ("controller::a_bypass_is_told_of", told::a_bypass_is_told_of),
        ("selectors::they_select_what_the_api_servers_do", selectors::they_select_what_the_api_servers_do),
        ("definitions::every_rule_refuses", definitions::every_rule_refuses),
        ("definitions::both_refuse_the_same", definitions::both_refuse_the_same),
        ("troubles::a_missing_right_is_named", troubles::a_missing_right_is_named),
        ("troubles::a_missing_definition_is_named", troubles::a_missing_definition_is_named),
        (
            "troubles::a_certificate_of_somebody_else_is_refused",
            troubles::a_certificate_of_somebody_else_is_refused,
        ),
        ("troubles::a_kubeconfig_that_is_missing_is_named", troubles::a_kubeconfig_that_is_missing_is_named),
        (
            "troubles::an_api_server_that_is_down_removes_nobody",
            troubles::an_api_server_that_is_down_removes_nobody,
        ),
        (
            "troubles::another_node_of_the_name_is_not_written_to",
            troubles::another_node_of_the_name_is_not_written_to,
        ),
        ("troubles::a_heartbeat_wakes_nobody", troubles::a_heartbeat_wakes_nobody),
        ("rights::every_policy_refuses", rights::every_policy_refuses),
        ("rights::a_token_without_a_node_writes_nothing", rights::a_token_without_a_node_writes_nothing),
        ("rights::a_token_ends_with_its_pod", rights::a_token_ends_with_its_pod),
        ("rights::hooks_can_do_their_work", rights::they_can_do_their_work),
        ("rights::others_are_not_stopped", rights::others_are_not_stopped),
    ];
    let more = [peers::ALL, mischief::ALL, rotation::outages::ALL, rights::MISTAKES, charts::ALL];
    for (name, case) in on_server.iter().chain(more.into_iter().flatten()) {
        trials.push(trial(name, &shared, missing.clone(), case));
    }
    let alerts = |_: &mut Server| charts::every_alert_is_raised();
    let lacks = missing.clone().or_else(charts::lacks_promtool);
    trials.push(trial("chart::every_alert_is_raised", &shared, lacks, alerts));
    trials.push(Trial::test("rights::the_table_says_what_is_tested", || {
        told(rights::the_table_says_what_is_tested)
    }));
    for attack in rights::attacks() {
        let name = format!("rights::attack::{}", attack.name);
        let on_server = |server: &mut Server| rights::attacked(server, attack);
        trials.push(trial(&name, &shared, missing.clone(), on_server));
    }
    trials.push(trial("chart::nothing_is_left", &shared, missing, charts::nothing_is_left));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that needs the server.
fn trial(
    name: &str,
    shared: &Shared,
    missing: Option<String>,
    run: impl FnOnce(&mut Server) + Send + 'static,
) -> Trial {
    let (told_name, shared) = (name.to_owned(), shared.clone());
    Trial::ignorable_test(name, move || {
        if let Some(reason) = missing {
            println!("skipped: {told_name} ({reason})");
            return Ok(Completion::ignored_with(reason));
        }
        let mut server = shared.lock().unwrap_or_else(PoisonError::into_inner);
        told(|| run(server.as_mut().unwrap())).map(|()| Completion::Completed)
    })
}

fn told(run: impl FnOnce()) -> Result<(), Failed> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| Failed::from("see above"))
}
