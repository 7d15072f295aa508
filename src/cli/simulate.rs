//! `tollstream simulate`: a provider that speaks OpenAI's format, for the laptop and for tests.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::output;
use crate::simulate::{Behavior, FaultRule, Options, PaceRule, Server};

/// Serve simulated models in OpenAI's format, deterministically, with faults on purpose.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where to listen: a loopback address
    #[arg(long, default_value = "127.0.0.1:4010", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Other seeds give other answers and other faults
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Milliseconds to the first token [default: by model]
    #[arg(long, value_name = "MS")]
    pub ttft_ms: Option<u64>,
    /// Pace of the tokens, 0 for as fast as possible [default: by model]
    #[arg(long, value_name = "N")]
    pub tokens_per_second: Option<u32>,
    /// How far the time between tokens strays [default: 10]
    #[arg(long, value_name = "PERCENT")]
    pub jitter_percent: Option<u8>,
    /// Tokens of every answer [default: by the prompt, 24 to 96]
    #[arg(long, value_name = "N")]
    pub output_tokens: Option<usize>,
    /// A fault and its share of requests, such as status=503:10%, cut:5%, stall-after=3, garbage, error, truncate; a provider's
    /// own error, such as anthropic/overloaded, or anthropic/overloaded-after=3 inside a stream; with another wait,
    /// status=429;retry-after=30; of one model or of all that begin so, gpt-4o@status=503:10% or gpt-4o*@cut
    #[arg(long = "fault", value_name = "FAULT")]
    pub faults: Vec<FaultRule>,
    /// The pace of one model or of all that begin so, such as gpt-4o*@ttft-ms=900;tokens-per-second=5
    #[arg(long = "pace", value_name = "PACE")]
    pub paces: Vec<PaceRule>,
    /// Report prompts that begin as earlier ones as cached
    #[arg(long)]
    pub prompt_caching: bool,
}

impl Args {
    fn options(&self) -> Options {
        let behavior = Behavior {
            ttft_ms: self.ttft_ms,
            tokens_per_second: self.tokens_per_second,
            jitter_percent: self.jitter_percent,
            output_tokens: self.output_tokens,
            faults: self.faults.clone(),
            paces: self.paces.clone(),
        };
        Options { seed: self.seed, behavior, prompt_caching: self.prompt_caching }
    }
}

/// Serves until SIGINT or SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let busy = || format!("cannot listen on {}; choose another address with --listen", args.listen);
    let listener = TcpListener::bind(args.listen).await.with_context(busy)?;
    let server = Server::start(args.options(), listener)?;
    output::line(&format!("simulating models at {}", server.base_url()));
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    server.stop().await;
    Ok(())
}
