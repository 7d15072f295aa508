//! The command line of Tollstream.

use std::process::ExitCode;

use clap::Parser;
use tollstream::cli::{self, output};

/// The event-sourced LLM gateway
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    #[command(subcommand)]
    Topology(cli::topology::Command),
    #[command(subcommand)]
    Keys(cli::keys::Command),
    #[command(subcommand)]
    Topics(cli::topics::Command),
}

#[tokio::main]
async fn main() -> ExitCode {
    tollstream::telemetry::log(false, "warn");
    let result = match Command::parse() {
        Command::Topology(command) => cli::topology::run(command).await,
        Command::Keys(command) => cli::keys::run(command).await,
        Command::Topics(command) => cli::topics::run(command).await,
    };
    result.unwrap_or_else(|error| {
        output::note(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
