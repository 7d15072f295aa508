//! An owner dies while it gives an answer that is kept: its asker gets a whole answer all the same, or is told that there is
//! none, and it is settled once.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;

use reqwest::Client;
use serde_json::json;
use tollstream::config::Config;
use tollstream::domain::{PicoUsd, RequestId};
use tollstream::records::journal::{AttemptSource, Entry, Fact, JournalRecord};
use tollstream::records::{Outcome, UsageSource};

use super::*;
use crate::stack::fixture::PATIENCE;
use crate::stack::pressure::upstream::Upstream;

const QUESTION: &str = "slow=3";
/// The owners have one name, so that each has its predecessor's place in the consumer group at once.
const OWNER: &str = "owner";

/// A facade that stays, and owners that do not.
struct Stage {
    config: Config,
    facade: Process,
    upstream: Arc<Upstream>,
    client: Client,
    key: String,
}

impl Stage {
    async fn new(name: &str) -> Self {
        let upstream = Arc::new(Upstream::start().await);
        let mut config = Engines::shared().isolated_with(name, None, |_| {}).await;
        config.providers.upstream_override = Some(upstream.url());
        let key = key(&config, ORGANIZATION);
        let launch = Launch { instance: "edge", roles: Some("facade,projection,sink"), ..Launch::default() };
        let mut facade = Process::start(&config, launch);
        facade.ready().await;
        config.kafka.properties.0.insert("group.instance.id".to_owned(), OWNER.to_owned());
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        Self { config, facade, upstream, client, key }
    }

    async fn owner(&self, failpoint: Option<&str>) -> Process {
        let failpoint = failpoint.map(str::to_owned);
        let mut owner = Process::start(&self.config, Launch { instance: OWNER, roles: Some("processor"), failpoint });
        owner.ready().await;
        owner
    }

    /// The text of a streamed answer, if it is whole, what was found, and the code of the error that ended it.
    async fn ask(&self, id: &str) -> (Option<String>, Option<String>, Option<String>) {
        let body = json!({
            "model": "gpt-4o-mini", "temperature": 0, "stream": true,
            "messages": [{"role": "user", "content": QUESTION}],
        });
        let request = self.client.post(format!("{}/v1/chat/completions", self.facade.facade)).bearer_auth(&self.key);
        let response = request.header("x-request-id", id).json(&body).send().await.expect("the facade answers");
        if response.status() != 200 {
            return (None, None, Some(response.status().to_string()));
        }
        let found = header(&response, CACHE_HEADER);
        let text = response.text().await.expect("a body");
        let mut words = String::new();
        let mut code = None;
        for event in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
            let Ok(event) = serde_json::from_str::<Value>(event) else { continue };
            words.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            code = event["error"]["code"].as_str().map(str::to_owned).or(code);
        }
        let is_whole = text.ends_with("data: [DONE]\n\n");
        assert_eq!(is_whole, code.is_none(), "{text}");
        (is_whole.then_some(words), found, code)
    }
}

type Attempt = (AttemptSource, Outcome, Option<PicoUsd>, UsageSource);

/// What the journal tells of a request: its attempts with their ends, and how often it was settled.
async fn story(config: &Config, id: &str) -> (Vec<Attempt>, usize) {
    let (id, mut attempts, mut settled) = (RequestId::parse(id).unwrap(), Vec::new(), 0);
    for (_, record) in read_of::<JournalRecord>(config, Topic::Journal).await {
        let Ok(Entry::Commit(commit)) = Entry::try_from(record) else { continue };
        if commit.request.as_ref().is_none_or(|request| request.request_id != id) {
            continue;
        }
        for fact in commit.facts {
            match fact {
                Fact::AttemptEnded(of) => attempts.push((of.source, of.outcome, of.cost_pico_usd, of.usage_source)),
                Fact::RequestSettled(_) => settled += 1,
                _ => {}
            }
        }
    }
    (attempts, settled)
}

/// What came of a hit whose owner died.
struct Came {
    /// What the asker got, if that is whole, or the code of the error.
    whole: Option<String>,
    code: Option<String>,
    attempts: Vec<Attempt>,
    calls: usize,
}

/// Asks for what is kept of an owner that dies at a point of giving it; whoever follows it ends what it left.
async fn killed_at(stage: &Stage, id: &str, armed: &str) -> Came {
    let mut doomed = stage.owner(Some(armed)).await;
    eventually("the cache is refilled", async || {
        (doomed.metric("tollstream_processor_cache_bytes").await > 0).then_some(())
    })
    .await;
    let before = stage.upstream.calls();
    let follows = async {
        let status = doomed.ended().await;
        assert_eq!(status.signal(), Some(9), "{status}");
        assert!(doomed.log().contains(&format!("failpoint {armed}")), "it died elsewhere");
        stage.owner(None).await
    };
    let ((whole, _, code), owner) = tokio::join!(stage.ask(id), follows);
    let attempts = eventually("it is settled", async || {
        let (attempts, settled) = story(&stage.config, id).await;
        assert!(settled < 2, "{armed}: {attempts:?}");
        (settled == 1).then_some(attempts)
    })
    .await;
    let calls = stage.upstream.calls() - before;
    owner.stop().await;
    let (_, settled) = story(&stage.config, id).await;
    assert_eq!(settled, 1, "{armed}");
    Came { whole, code, attempts, calls }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_what_is_kept_gets_it_whole_though_its_owner_dies_on_the_way() {
    let stage = Stage::new("cache_takeover").await;
    let owner = stage.owner(None).await;
    eventually("the key counts", async || (stage.ask("first").await.0.is_some()).then_some(())).await;
    let (whole, found, _) = stage.ask("second").await;
    let text = Some("word word word ".to_owned());
    assert_eq!((&whole, found.as_deref()), (&text, Some("hit")));
    owner.stop().await;

    let free = Some(PicoUsd::ZERO);
    let interrupted = (AttemptSource::Cache, Outcome::Interrupted, free, UsageSource::None);
    // All of it had come out, and only the end is missing: that is told again, as the ends of the two before it are.
    let came = killed_at(&stage, "settled", "before-terminal=kill@3").await;
    let completed = (AttemptSource::Cache, Outcome::Completed, free, UsageSource::None);
    assert_eq!((&came.whole, came.code, came.calls, came.attempts), (&text, None, 0, vec![completed]));
    // Nothing had come out yet: somebody is called, and the answer is a whole one, once.
    for (id, armed) in [("decided", "commit-acknowledged=kill@1"), ("begun", "before-content=kill@1")] {
        let came = killed_at(&stage, id, armed).await;
        assert_eq!((&came.whole, came.code, came.calls), (&text, None, 1), "{armed}: {:?}", came.attempts);
        let [first, (AttemptSource::Provider, Outcome::Completed, cost, UsageSource::Reported)] = &came.attempts[..]
        else {
            panic!("{armed}: {:?}", came.attempts)
        };
        assert!(*first == interrupted && *cost > free, "{armed}: {:?}", came.attempts);
    }
    // All of it had, and nobody had settled it: what another call gives is not put behind it, and nobody takes it for the whole.
    let came = killed_at(&stage, "unsettled", "before-commit=kill@2").await;
    assert_eq!((came.whole, came.code.as_deref()), (None, Some("answer_interrupted")), "{:?}", came.attempts);
    assert_eq!((came.attempts[0], came.calls), (interrupted, 1), "{:?}", came.attempts);

    let (code, report) = audit(&stage.config, &["--redecide"]);
    assert_eq!(code, Some(0), "{report:#}");
    assert!(report["counts"]["admitted"].as_u64() >= Some(6), "{report:#}");
    let Stage { facade, .. } = stage;
    facade.stop().await;
}
