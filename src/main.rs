//! The command line.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tollstream::cli;

/// The event-sourced LLM gateway: every request a Kafka record, every decision a fact, every dollar a line on a ledger.
#[derive(Parser)]
#[command(name = "tollstream", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything on this machine: engines, topics, a key, the gateway, and a first answer
    Up(Box<cli::up::GatewayArgs>),
    /// End what `up --detach` left running; data stays
    Down(cli::up::DownArgs),
    /// Run roles of the gateway against given engines
    Run(cli::run::RunArgs),
    /// The engines of a laptop: Kafka, a schema registry, ClickHouse
    Stack(cli::stack::StackArgs),
    /// Topics, schemas, seeds and tables: check, describe, apply
    #[command(subcommand)]
    Topology(cli::topology::Command),
    /// Read topics as JSON lines
    #[command(subcommand)]
    Topics(cli::topics::Command),
    /// Check the invariants on the logs: exit code 0 if they hold, 1 if one is violated, 2 if it could not look
    Audit(cli::audit::Audit),
    /// What an organization has posted, reserved and left, now or at any moment
    Balance(cli::balance::Balance),
    /// The answers that are kept for those who ask the same: show them, forget them
    Cache(cli::cache::Cache),
    /// What organizations may use and spend
    #[command(subcommand)]
    Plans(cli::control::Command<cli::control::PlanFields>),
    /// Who pays
    #[command(subcommand)]
    Organizations(cli::control::Command<cli::control::OrganizationFields>),
    /// What became of a request, from the journal: exit code 0 if it was found, 1 if not, 2 if it could not look
    Explain(cli::explain::Explain),
    /// Yesterday's traffic through other policies, prices and plans: exit code 0, 1 if recorded decisions do not come out
    /// again, 2 if it could not look
    Replay(Box<cli::replay::Replay>),
    /// The logs as files that outlive the topics: write, check
    #[command(subcommand)]
    Archive(cli::archive::Command),
    /// Saved queries on ClickHouse: exit code 0 if there are rows, 1 if there are none, 2 if it could not look
    Query(cli::query::Query),
    /// What the journal's calls would have cost at other prices: exit code 0, 1 if there are none, 2 if it could not look
    Reprice(cli::reprice::Reprice),
    /// API keys
    #[command(subcommand)]
    Keys(Box<cli::control::keys::Command>),
    /// Models, who serves them and what they cost
    #[command(subcommand)]
    Models(cli::control::Command<cli::control::ModelFields>),
    /// Who serves the models
    #[command(subcommand)]
    Deployments(cli::control::deployments::Command),
    /// What the models' deployments cost
    #[command(subcommand)]
    Prices(Box<cli::control::prices::Command>),
    /// Which models answer
    #[command(subcommand)]
    Policies(cli::control::Command<cli::control::PolicyFields>),
    /// Routing policies: check a file, explain a text, compare two
    #[command(subcommand)]
    Policy(Box<cli::policy::Command>),
    /// How the deployments do: state, latency, failures
    Providers(cli::providers::Providers),
    /// Make plans, organizations, models and policies what files say; shows the difference first
    Apply(cli::control::apply::Apply),
    /// The metrics of a process, as docs/metrics.md has them
    Metrics(cli::metrics::MetricsArgs),
    /// Make traffic for demonstrations
    #[command(subcommand)]
    Demo(cli::traffic::Command),
    /// An OpenAI-compatible upstream that answers without a model
    Simulate(cli::simulate::Args),
}

/// How long what blocks a thread may take after the end of everything else: a client of Kafka that does not close, a
/// restore that nobody waits for any more. Then the process ends without it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    tollstream::tls::install_provider();
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::output::note(&format!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(arguments.command));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    code
}

async fn run(command: Command) -> ExitCode {
    let outcome = match command {
        Command::Up(args) => cli::up::run(*args).await,
        Command::Down(args) => cli::up::down(args).await,
        Command::Run(args) => cli::run::run(args).await,
        Command::Stack(args) => cli::stack::run(args).await,
        Command::Topology(args) => cli::topology::run(args).await,
        Command::Topics(args) => cli::topics::run(args).await,
        Command::Audit(args) => cli::audit::run(args).await,
        Command::Balance(args) => cli::balance::run(args).await,
        Command::Cache(args) => cli::cache::run(args).await,
        Command::Plans(args) => cli::control::run(args).await,
        Command::Organizations(args) => cli::control::run(args).await,
        Command::Keys(args) => cli::control::keys::run(*args).await,
        Command::Models(args) => cli::control::run(args).await,
        Command::Deployments(args) => cli::control::deployments::run(args).await,
        Command::Prices(args) => cli::control::prices::run(*args).await,
        Command::Policies(args) => cli::control::run(args).await,
        Command::Policy(args) => cli::policy::run(*args).await,
        Command::Providers(args) => cli::providers::run(args).await,
        Command::Apply(args) => cli::control::apply::run(args).await,
        Command::Explain(args) => cli::explain::run(args).await,
        Command::Replay(args) => cli::replay::run(*args).await,
        Command::Archive(args) => cli::archive::run(args).await,
        Command::Query(args) => cli::query::run(args).await,
        Command::Reprice(args) => cli::reprice::run(args).await,
        Command::Metrics(args) => Ok(cli::metrics::run(args)),
        Command::Demo(args) => cli::traffic::run(args).await,
        Command::Simulate(args) => cli::simulate::run(args).await.map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        cli::output::note(&format!("error: {}", tollstream::causes::causes(error.as_ref())));
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_are_consistent() {
        super::Arguments::command().debug_assert();
    }
}
