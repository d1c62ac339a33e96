//! Which checks there are, of which clusters, in which order.

use std::time::Instant;

use anyhow::{Result, bail};

use super::{
    Cluster,
    installed::Product,
    life,
    network::Cni,
    nodes, policies, processes, rotation,
    smoke::{Pods, roll_out},
};
use crate::{report, test::Tally, workspace::Workspace};

type Check = fn(&Pods, &mut Cluster) -> Result<()>;

/// In this order: the second half needs the chart, and the first shows that what is captured then would be found.
const CHECKS: &[(&str, Check)] = &[
    ("pods_of_all_nodes_ping_each_other_and_the_wire_sees_it", Pods::plain_pings),
    ("a_service_answers_a_pod_in_both_families", Pods::service),
    ("a_node_port_answers_from_the_wire_in_both_families", Pods::node_port),
    (INSTALLED, Pods::install),
    ("pods_ping_each_other_and_the_wire_sees_nothing_of_it", Pods::hidden_pings),
    ("a_service_answers_once_all_is_encrypted", Pods::service),
    ("a_node_port_answers_once_all_is_encrypted", Pods::node_port),
    ("pods_of_a_headless_service_answer_and_the_wire_sees_nothing_of_it", Pods::headless),
    ("helm_test_passes", life::helm_test),
    ("an_upgrade_under_traffic_loses_and_shows_nothing", life::upgrade),
    ("a_rollback_under_traffic_loses_and_shows_nothing", life::rollback),
    ("an_agents_pod_that_goes_under_traffic_loses_and_shows_nothing", life::agent_gone),
    ("a_rotation_under_traffic_loses_and_shows_nothing", rotation::rotate),
    ("a_rotation_whose_api_server_is_away_loses_and_shows_nothing", rotation::api_server_away),
    ("a_generation_that_is_raised_by_gitops_loses_and_shows_nothing", rotation::by_gitops),
    ("a_stolen_key_is_retired_at_once", rotation::compromised),
    ("policies_are_staged_as_readme_says", policies::staged),
    ("a_controller_that_is_gone_under_traffic_harms_nothing", nodes::controller_gone),
    ("an_agent_that_is_killed_under_traffic_loses_and_shows_nothing", nodes::agent_killed),
    ("a_node_that_reboots_disturbs_no_other_and_is_closed_from_its_first_attach", nodes::reboot),
    ("a_node_that_goes_and_joins_anew_disturbs_no_other", nodes::joins_anew),
    ("agents_that_know_nodes_by_slices_lose_and_show_nothing", nodes::by_slices),
    ("the_chart_is_removed_without_residue", life::uninstall),
];

/// Where flannel is the network: what its devices and routes may change.
const WITH_FLANNEL: [&str; 9] = [
    "pods_of_all_nodes_ping_each_other_and_the_wire_sees_it",
    INSTALLED,
    "pods_ping_each_other_and_the_wire_sees_nothing_of_it",
    "a_service_answers_once_all_is_encrypted",
    "a_node_port_answers_once_all_is_encrypted",
    "pods_of_a_headless_service_answer_and_the_wire_sees_nothing_of_it",
    "an_agents_pod_that_goes_under_traffic_loses_and_shows_nothing",
    "a_rotation_under_traffic_loses_and_shows_nothing",
    "the_chart_is_removed_without_residue",
];

/// Of which every check that comes after it needs what it did.
const INSTALLED: &str = "the_chart_is_installed_and_every_way_is_encrypted";

/// Brings clusters of three nodes up, one after the other, and tries them.
pub(crate) fn test(workspace: &Workspace, filter: Option<&str>) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut product = None;
    for (cni, prefix, checks) in [
        (Cni::Bridge, "", CHECKS.to_vec()),
        (Cni::Flannel, "flannel_vxlan::", with_flannel()),
        (Cni::FlannelHostGw, "flannel_host_gw::", with_flannel()),
    ] {
        let wanted = wanted(prefix, &checks, filter);
        if wanted.is_empty() {
            continue;
        }
        if product.is_none() {
            product = Some(Product::new(workspace)?);
        }
        let done = super::with(workspace, 3, super::MEMORY, cni, product.clone(), |cluster| {
            let pods = roll_out(cluster, workspace)?;
            let failed = tally.failed;
            let result =
                wanted.iter().try_for_each(|(name, check)| run(name, *check, &pods, cluster, &mut tally));
            if tally.failed > failed && result.is_ok() {
                cluster.save_node_logs();
                report::say(format!("the cluster's logs are in {}", cluster.plan.folder.display()));
            }
            result
        });
        // One that does not come up is no reason to forget the others.
        if let Err(error) = done {
            tally.add(Tally::broken(format!("a cluster with {cni:?}: {error:#}")));
        }
        if processes::interrupted() {
            break;
        }
    }
    Ok(tally)
}

fn with_flannel() -> Vec<(&'static str, Check)> {
    CHECKS.iter().filter(|(name, _)| WITH_FLANNEL.contains(name)).copied().collect()
}

/// Those that the filter wants, and the installation where one of them comes after it.
fn wanted(prefix: &str, checks: &[(&str, Check)], filter: Option<&str>) -> Vec<(String, Check)> {
    let named = checks.iter().map(|(name, check)| (format!("{prefix}{name}"), *check));
    let is_wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    let needs =
        named.clone().skip_while(|(name, _)| !name.ends_with(INSTALLED)).any(|(name, _)| is_wanted(&name));
    named.filter(|(name, _)| is_wanted(name) || (needs && name.ends_with(INSTALLED))).collect()
}

/// One check; an error only where somebody wants an end.
fn run(name: &str, check: Check, pods: &Pods, cluster: &mut Cluster, tally: &mut Tally) -> Result<()> {
    let start = Instant::now();
    let result = check(pods, cluster);
    if processes::interrupted() {
        bail!("interrupted in {name}");
    }
    report::print(format!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" }));
    report::print(format!("    {} s", start.elapsed().as_secs()));
    match result {
        Ok(()) => tally.passed += 1,
        Err(error) => {
            report::print(format!("    {error:#}"));
            tally.failed += 1;
            tally.failures.push(name.to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_the_chart_has_it() {
        let names = |filter| -> Vec<String> {
            wanted("", CHECKS, filter).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(None).len(), CHECKS.len());
        assert_eq!(names(Some("reboots"))[0], INSTALLED);
        assert_eq!(names(Some("a_service_answers_a_pod")).len(), 1);
        assert!(wanted("flannel::", &with_flannel(), Some("a_stolen_key")).is_empty());
        assert_eq!(with_flannel().len(), WITH_FLANNEL.len());
    }
}
