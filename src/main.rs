//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "tollstream", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The engines of a laptop: Kafka, schema registry, ClickHouse
    Stack(tollstream::cli::stack::StackArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let result = match Cli::parse().command {
        Command::Stack(args) => tollstream::cli::stack::run(args).await,
    };
    result.unwrap_or_else(|error| {
        tollstream::cli::output::note(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
