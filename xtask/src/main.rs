//! `cargo xtask`: everything that is done with the checkout.
//!
//! Every command sets up what it needs and is missing, says what and why, and keeps what it
//! fetched or made outside of the checkout, so that the second call is quick.

mod bench;
mod build;
mod cluster;
mod clusters;
mod codegen;
mod demo;
mod fuzz;
mod image;
mod kubernetes;
mod lab;
mod lint;
mod machine;
mod object;
mod process;
mod report;
mod setup;
mod simulate;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    InCheckout(InCheckout),
    /// In a node of a cluster (`cluster` puts it on its command's PATH)
    #[command(hide = true)]
    NodeExec(cluster::NodeExecArguments),
    /// What passes between the nodes of a cluster (`cluster` puts it on its command's PATH)
    #[command(hide = true)]
    WireCapture(cluster::WireCaptureArguments),
}

#[derive(Subcommand)]
enum InCheckout {
    /// Three nodes encrypt their pods' traffic, before your eyes
    Demo(demo::Arguments),
    /// Set up what is missing and run every test
    Test(test::Arguments),
    /// What is promised in numbers, measured
    Bench(bench::Arguments),
    /// Any input, led by what it makes the code do
    Fuzz(fuzz::Arguments),
    /// Rotation apart from the kernel: some nodes, many schedules
    #[command(disable_help_flag = true)]
    Simulate(simulate::Arguments),
    /// Policies on random clusters, held to a reference: a million, or `--number`
    Clusters(clusters::Arguments),
    /// Formatting, clippy, dependency rules, licences, paths
    Lint(lint::Arguments),
    /// Make what is made from the types: the CustomResourceDefinitions
    Codegen(codegen::Arguments),
    /// Lay the lab, start a daemon a node, run a command in it
    Lab(lab::Arguments),
    /// Run a command with our programs where the lab would run, without laying it
    Vm(lab::VmArguments),
    /// A real Kubernetes, its nodes on a kernel with WireGuard, and a command beside it
    Cluster(cluster::Arguments),
    /// Build the image that is installed
    Image(image::Arguments),
    /// Build the eBPF programs and the host programs as the lab runs them
    Build,
    /// Build the eBPF programs
    BuildEbpf,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            report::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    // Started from anywhere, also outside of the checkout.
    let command = match command {
        Command::NodeExec(arguments) => return cluster::node_exec(&arguments),
        Command::WireCapture(arguments) => return cluster::wire_capture(&arguments),
        Command::InCheckout(command) => command,
    };
    let workspace = Workspace::find()?;
    if !matches!(
        command,
        InCheckout::Lint(_)
            | InCheckout::Simulate(_)
            | InCheckout::Codegen(_)
            | InCheckout::BuildEbpf
            | InCheckout::Cluster(_)
    ) {
        build::tell_first_time(&workspace);
    }
    match command {
        InCheckout::Demo(arguments) => demo::run(&workspace, &arguments),
        InCheckout::Test(arguments) => test::run(&workspace, &arguments),
        InCheckout::Bench(arguments) => bench::run(&workspace, &arguments),
        InCheckout::Codegen(arguments) => codegen::run(&workspace, &arguments),
        InCheckout::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        InCheckout::Simulate(arguments) => simulate::run(&workspace, &arguments),
        InCheckout::Clusters(arguments) => clusters::run(&workspace, &arguments),
        InCheckout::Lint(arguments) => lint::run(&workspace, &arguments),
        InCheckout::Lab(arguments) => lab::run(&workspace, arguments),
        InCheckout::Vm(arguments) => lab::run_vm(&workspace, arguments),
        InCheckout::Cluster(arguments) => cluster::run(&workspace, &arguments),
        InCheckout::Image(arguments) => image::run(&workspace, &arguments),
        InCheckout::Build => build::programs(&workspace).map(|_| ExitCode::SUCCESS),
        InCheckout::BuildEbpf => build::ebpf(&workspace).map(|_| ExitCode::SUCCESS),
    }
}
