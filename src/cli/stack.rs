//! `tollstream stack`: the engines of a laptop.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::output;
use crate::stack::{self, Engine, Need, Options, Ports, Progress, daemon};

/// The most that `logs` looks back.
const LOOK_BACK_BYTES: u64 = 4 * 1024 * 1024;
/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// `tollstream stack ...`
#[derive(Debug, Args)]
pub struct StackArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing, start the engines in the background and wait until they serve
    Up(UpArgs),
    /// End the engines; their data stays
    Down(DataArgs),
    /// Say what runs where; the exit code is 0 if all engines serve and 1 if not
    Status {
        #[command(flatten)]
        data: DataArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print what an engine (kafka, registry, clickhouse) or the supervisor printed
    Logs {
        #[command(flatten)]
        data: DataArgs,
        /// kafka, registry, clickhouse or supervisor
        name: String,
        /// Keep printing what comes
        #[arg(long, short)]
        follow: bool,
        /// How many of the last lines to print
        #[arg(long, short = 'n', default_value_t = 50)]
        lines: usize,
    },
    /// Say which programs are missing, for running, installing and building
    Doctor,
    #[command(hide = true)]
    Supervise(UpArgs),
}

#[derive(Debug, Args)]
struct DataArgs {
    /// The directory of this stack's data, logs and processes
    #[arg(long, default_value = ".tollstream", value_name = "DIR")]
    data: PathBuf,
}

/// Where the engines live and listen. Other commands that start engines take the same flags.
#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Where the engines are installed, once for all stacks of a user [default: ~/.cache/tollstream]
    #[arg(long, env = "TOLLSTREAM_ENGINES", value_name = "DIR")]
    engines: Option<PathBuf>,
    /// Kafka's port [default: 9092]
    #[arg(long, value_name = "PORT")]
    kafka_port: Option<u16>,
    /// The port of Kafka's controller [default: 9093]
    #[arg(long, value_name = "PORT")]
    kafka_controller_port: Option<u16>,
    /// The registry's port [default: 8081]
    #[arg(long, value_name = "PORT")]
    registry_port: Option<u16>,
    /// ClickHouse's HTTP port [default: 8123]
    #[arg(long, value_name = "PORT")]
    clickhouse_port: Option<u16>,
    /// ClickHouse's native port [default: 9000]
    #[arg(long, value_name = "PORT")]
    clickhouse_tcp_port: Option<u16>,
    /// Pick free ports for all that are not given
    #[arg(long)]
    free_ports: bool,
    /// How long one engine may take until it serves, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    start_timeout_s: u64,
    /// How long an engine may take to end before it is killed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    stop_timeout_s: u64,
}

impl UpArgs {
    /// The directory of the stack's data.
    pub fn data(&self) -> &Path {
        &self.data.data
    }

    /// The ports that were asked for by flag.
    pub fn wanted(&self) -> daemon::Wanted {
        [
            self.kafka_port,
            self.kafka_controller_port,
            self.registry_port,
            self.clickhouse_port,
            self.clickhouse_tcp_port,
        ]
    }

    /// The flags as options of the library.
    pub fn options(&self) -> Result<Options, stack::Error> {
        let base = if self.free_ports { Ports::free()? } else { Ports::default() };
        let mut options = Options::new(&self.data.data)?;
        if let Some(engines) = &self.engines {
            options.engines.clone_from(engines);
        }
        options.ports = Ports {
            kafka: self.kafka_port.unwrap_or(base.kafka),
            kafka_controller: self.kafka_controller_port.unwrap_or(base.kafka_controller),
            registry: self.registry_port.unwrap_or(base.registry),
            clickhouse_http: self.clickhouse_port.unwrap_or(base.clickhouse_http),
            clickhouse_tcp: self.clickhouse_tcp_port.unwrap_or(base.clickhouse_tcp),
        };
        options.start_timeout = Duration::from_secs(self.start_timeout_s);
        options.stop_timeout = Duration::from_secs(self.stop_timeout_s);
        Ok(options)
    }
}

/// Carries out one `stack` command.
pub async fn run(args: StackArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Up(args) => up(&args).await,
        Command::Down(args) => down(&args).await,
        Command::Status { data, json } => status(&data.data, json).await,
        Command::Logs { data, name, follow, lines } => logs(&data.data, &name, lines, follow).await,
        Command::Doctor => doctor(),
        Command::Supervise(args) => {
            daemon::supervise(args.options()?).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn up(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let progress = Progress::detect();
    let options = args.options()?;
    let (outcome, _) = daemon::up(options, args.wanted(), &progress).await?;
    if outcome == daemon::Outcome::AlreadyUp {
        output::note("the stack is up already");
    }
    status(&args.data.data, false).await
}

async fn down(args: &DataArgs) -> anyhow::Result<ExitCode> {
    let grace = Options::new(&args.data)?.stop_timeout;
    let ended = daemon::down(&args.data, grace, &Progress::detect()).await?;
    output::note(if ended { "the stack is down; its data is kept" } else { "the stack is not up" });
    Ok(ExitCode::SUCCESS)
}

async fn status(data: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let report = daemon::status(data).await?;
    if json {
        output::line(&serde_json::to_string(&report)?);
    } else {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let rows: Vec<Vec<String>> = report
            .engines
            .iter()
            .map(|engine| {
                vec![
                    engine.engine.to_string(),
                    engine
                        .reason
                        .as_ref()
                        .map_or_else(|| engine.state.to_owned(), |reason| format!("{} ({reason})", engine.state)),
                    or_dash(engine.address.clone()),
                    or_dash(engine.pid.map(|pid| pid.to_string())),
                    engine.log.display().to_string(),
                ]
            })
            .collect();
        output::table(&["engine", "state", "address", "pid", "log"], &rows);
    }
    Ok(if report.up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn doctor() -> anyhow::Result<ExitCode> {
    match stack::check_prerequisites(&[Need::Run, Need::Install, Need::Build]) {
        Ok(()) => {
            output::line("all prerequisites are there");
            Ok(ExitCode::SUCCESS)
        }
        Err(missing) => {
            output::line(&missing.to_string());
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn logs(data: &Path, name: &str, lines: usize, follow: bool) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(data.exists(), "there is no stack in {}", data.display());
    let layout = stack::Layout::open(data)?;
    let path = match name {
        "supervisor" => layout.supervisor_log(),
        engine => layout.log(engine.parse::<Engine>().map_err(|error| anyhow::anyhow!("{error}, and supervisor"))?),
    };
    anyhow::ensure!(path.exists(), "{name} has not been started here: there is no {}", path.display());
    let mut file = File::open(&path)?;
    let length = file.metadata()?.len();
    let mut position = length.saturating_sub(LOOK_BACK_BYTES);
    let text = read_from(&mut file, &mut position)?;
    if !print(last_lines(&text, lines)) {
        return Ok(ExitCode::SUCCESS);
    }
    if !follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        tokio::time::sleep(FOLLOW_EVERY).await;
        // A log that is shorter than before has begun anew.
        if file.metadata()?.len() < position {
            position = 0;
        }
        if !print(read_from(&mut file, &mut position)?.lines()) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Prints lines. False: the reader, such as `head`, has gone, and following on would be for nobody.
fn print<'a>(mut lines: impl Iterator<Item = &'a str>) -> bool {
    let mut out = std::io::stdout().lock();
    lines.all(|line| writeln!(out, "{line}").is_ok()) && out.flush().is_ok()
}

/// Reads whole lines from a position on, and moves it behind them. A line that is still being written waits for its end.
fn read_from(file: &mut File, position: &mut u64) -> std::io::Result<String> {
    file.seek(SeekFrom::Start(*position))?;
    let mut bytes = Vec::new();
    file.take(LOOK_BACK_BYTES).read_to_end(&mut bytes)?;
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    *position += u64::try_from(bytes.len()).unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str, count: usize) -> impl Iterator<Item = &str> {
    let skipped = text.lines().count().saturating_sub(count);
    text.lines().skip(skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_read_and_each_once() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        let (mut reader, mut position) = (File::open(log.path()).unwrap(), 0);
        log.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(read_from(&mut reader, &mut position).unwrap(), "one\ntwo\n");
        assert_eq!(read_from(&mut reader, &mut position).unwrap(), "");
        log.write_all(b"ee\n").unwrap();
        assert_eq!(read_from(&mut reader, &mut position).unwrap(), "three\n");
    }

    #[test]
    fn the_last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\nc\n", 2).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(last_lines("a\n", 5).collect::<Vec<_>>(), ["a"]);
    }
}
