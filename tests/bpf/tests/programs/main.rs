//! Drives `steer`, `guard` and `deliver` by BPF_PROG_TEST_RUN: every reason by a case of its own, and
//! any packet in any state of the world against the decision on the host.
//!
//! Needs root (CAP_BPF, CAP_NET_ADMIN and, for the map in the daemon's memory, no more), and the
//! object that `cargo xtask build-ebpf` makes.
#![expect(clippy::print_stdout, reason = "a test runner's output is the point of it")]

mod backstop;
mod cases;
mod clamp;
mod differential;
mod maps;
mod matrix;
mod reasons;
mod too_big;
mod verified;
mod watched;

use std::process::ExitCode;

use anyhow::Result;
use kubeveil_tests_bpf::{cell, kernel};
use libtest_mimic::{Arguments, Completion, Trial};

fn main() -> ExitCode {
    let mut trials = vec![trial("every_reason_has_a_case", reasons::every_reason_has_a_case)];
    for case in reasons::cases() {
        trials.push(trial(&case.name(), move || case.run()));
    }
    trials.extend([
        trial("a_short_segment_size_is_left_alone", clamp::short_is_left_alone),
        trial("a_long_segment_size_is_lowered", clamp::long_is_lowered),
        trial("a_segment_size_is_lowered_while_bypassed", clamp::lowered_while_bypassed),
        trial("only_a_syn_is_clamped", clamp::only_a_syn),
        trial("tags_are_popped", clamp::tags_are_popped),
        trial("the_sender_of_what_is_too_big_is_told", too_big::its_sender_is_told),
        trial("segments_are_judged_one_by_one", too_big::segments_are_judged),
        trial("flows_are_remembered", cases::flows_are_remembered),
        trial("a_reply_keeps_its_flow_alive", cases::a_reply_keeps_its_flow_alive),
        trial("prefixes_are_kept_for_an_epoch", cases::prefixes_are_kept_for_an_epoch),
        trial("addresses_that_share_a_place", cases::addresses_that_share_a_place),
        trial("big_tcp_is_counted_whole", cases::big_tcp_is_counted_whole),
        trial("maps_are_as_the_abi_says", maps::are_as_the_abi_says),
        trial("the_kernel_decides_as_the_host_does", differential::kernel_and_host_agree),
        trial("the_kernel_decides_so_of_damaged_packets", differential::of_damaged_packets_too),
        trial("the_kernel_decides_so_of_packets_cut_off_anywhere", differential::of_packets_cut_off_anywhere),
        trial("every_condition", matrix::every_condition),
        trial("what_the_verifier_looks_at", verified::verified),
        trial("watched/what_is_counted_is_seen", watched::what_is_counted_is_seen),
        trial("watched/others_are_not_seen", watched::others_are_not_seen),
        trial("what_was_written_is_settled", watched::what_was_written_is_settled),
        trial("watched/the_backstop_shows_what_it_drops", watched::the_backstop_shows_what_it_drops),
        trial("backstop/the_program_holds", backstop::the_program_holds),
        trial("backstop/nftables_holds", backstop::nftables_holds),
        trial("backstop/an_index_guards_nobody", backstop::an_index_guards_nobody),
        trial("backstop/a_strict_route_check_is_seen", backstop::a_strict_route_check_is_seen),
        trial("backstop/an_upgrade_opens_and_closes_nothing", backstop::an_upgrade_opens_and_closes_nothing),
        trial("backstop/a_flush_of_nftables", backstop::a_flush_of_nftables),
        trial("backstop/pins_that_somebody_removed", backstop::pins_that_somebody_removed),
        trial("backstop/what_can_not_be_seen_is_told", backstop::what_can_not_be_seen_is_told),
        trial("backstop/uninstall_takes_it_away", backstop::uninstall_takes_it_away),
        trial(
            "backstop/a_changed_table_is_not_taken_for_ours",
            backstop::a_changed_table_is_not_taken_for_ours,
        ),
        trial("backstop/a_large_cluster_fits_into_nftables", backstop::a_large_cluster_fits_into_nftables),
        trial("backstop/a_map_of_another_size_is_made_anew", backstop::a_map_of_another_size_is_made_anew),
        trial("backstop/the_kernel_decides_as_the_host_does", backstop::the_kernel_decides_as_the_host_does),
    ]);
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that is skipped, visibly, where the kernel does not let us load programs.
fn trial(name: &str, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let told = name.to_owned();
    Trial::ignorable_test(name, move || {
        if let Some(reason) = kernel::missing_privilege() {
            println!("skipped: {told} ({reason})");
            return Ok(Completion::ignored_with(reason));
        }
        run().map(|()| Completion::Completed).map_err(|error| format!("{error:#}").into())
    })
}
