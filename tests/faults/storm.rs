//! Everything at once: many processors that come and go at random under load, and each engine away for a while; half of
//! the organizations have too little money for what they ask.

use std::collections::BTreeMap;

use rustix::process::Signal;
use tollstream::domain::PicoUsd;
use tollstream::records::Topic;
use tollstream::records::control::{Budget, Organization, Plan, Spend, WhenShort};
use tollstream::records::requests::Request;
use tollstream::simulate::text::Random;
use tollstream::stack::{Engine, EngineState};
use tollstream::topology::Seeds;

use super::log::{Journal, Reader};
use super::suite;
use super::world::{Ask, World, ample};
use crate::stack::fixture::{Engines, OwnEngines, eventually};
use crate::stack::process::{Launch, Process};
use crate::stack::stream::chat;

/// What a request costs about.
const COST: PicoUsd = PicoUsd::new(4_000_000);
/// So that the worst case of a request is as much as fifteen of them cost.
const OUTPUT_CAP: u64 = 100;

/// How large the storm is.
struct Size {
    processors: u64,
    partitions: u32,
    organizations: u64,
    requests: usize,
    /// Of those, asked and not over at the most.
    window: usize,
    restarts: usize,
}

const SHORT: Size = Size { processors: 2, partitions: 4, organizations: 8, requests: 400, window: 100, restarts: 2 };
const FULL: Size =
    Size { processors: 8, partitions: 32, organizations: 200, requests: 20_000, window: 400, restarts: 16 };

/// How much money an organization has, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purse {
    Ample,
    /// Less than it asks for; what does not fit is refused.
    Scarce,
    /// The same; answers are made shorter first.
    ScarceAndShorter,
}

impl Purse {
    const fn of(organization: u64) -> Self {
        match organization % 4 {
            0 | 1 => Self::Ample,
            2 => Self::Scarce,
            _ => Self::ScarceAndShorter,
        }
    }

    const fn plan(self) -> &'static str {
        match self {
            Self::Ample => "ample",
            Self::Scarce => "scarce",
            Self::ScarceAndShorter => "scarce_and_shorter",
        }
    }
}

/// The organizations of the storm, each with its plan.
fn add_organizations(seeds: &mut Seeds, size: &Size) {
    let asked_by_each = size.requests as u64 / size.organizations;
    let month = COST.checked_mul(asked_by_each).expect("an amount");
    for (purse, when_short) in
        [(Purse::Scarce, WhenShort::Refuse), (Purse::ScarceAndShorter, WhenShort::LowerOutputCap)]
    {
        let budget = Budget { spend: Spend { day: None, month: Some(month) }, when_short, ..ample().budget };
        let plan = Plan { output_cap: Some(OUTPUT_CAP), budget, ..ample() };
        seeds.plans.insert(purse.plan().parse().expect("a name"), plan);
    }
    for number in 0..size.organizations {
        let id = organization(number);
        let plan = Some(Purse::of(number).plan().parse().expect("a name"));
        seeds.organizations.insert(id.parse().expect("an id"), Organization { plan, ..Organization::named(&id) });
    }
}

/// The seed of what happens when: `TOLLSTREAM_FAULTS_SEED`, else another one each time.
fn seed() -> u64 {
    match std::env::var("TOLLSTREAM_FAULTS_SEED") {
        Ok(seed) => seed.parse().expect("TOLLSTREAM_FAULTS_SEED is a number"),
        Err(_) => {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).expect("random bytes");
            u64::from_le_bytes(bytes)
        }
    }
}

struct Storm<'a> {
    world: &'a World,
    size: &'a Size,
    random: Random,
    asks: Vec<Ask>,
    /// What must be refused, beside `asks`.
    refused: usize,
    /// Of both, those that are known to be over.
    over: usize,
    set_aside: u64,
    repeats: u64,
    journal: Reader<Journal>,
}

impl Storm<'_> {
    /// One more request, of any kind.
    async fn ask(&mut self) {
        let id = format!("storm-{}", self.asks.len());
        let number = self.random.below(self.size.organizations);
        let (organization, purse) = (organization(number), Purse::of(number));
        let ask = match self.random.below(20) {
            0..=8 => Ask::whole(&id),
            9..=16 => Ask::streamed(&id, 4, self.random.below(10)),
            _ => Ask::streamed(&id, 20, 100),
        };
        let ask = ask.of(&organization);
        let ask = if self.random.below(2) == 0 { ask } else { ask.without_key() };
        let partition = self.world.partition(&organization);
        match self.random.below(25) {
            0 => {
                self.world.put(Topic::Requests, partition, b"no record").await;
                self.set_aside += 1;
            }
            1 => {
                let refused = format!("refused-{id}");
                let body = r#"{"model":"no-such-model","messages":[{"role":"user","content":"x"}]}"#;
                self.world.ask_as(chat(&refused, body)).await;
                self.refused += 1;
            }
            _ => {}
        }
        match self.random.below(25) {
            // What is refused may be asked again, so that a record that is there twice has two verdicts.
            0 | 1 if purse != Purse::Ample => self.world.ask(&ask).await,
            0 => {
                let payload = self.world.encoded(Request::Chat(Box::new(ask.chat())));
                let elsewhere = (partition + 1) % self.size.partitions as i32;
                self.world.put(Topic::Requests, elsewhere, &payload).await;
                self.set_aside += 1;
            }
            1 => {
                self.world.ask(&ask).await;
                self.world.ask(&ask).await;
                self.repeats += 1;
            }
            2 => {
                self.world.ask(&ask).await;
                self.world.cancel(&ask).await;
            }
            _ => self.world.ask(&ask).await,
        }
        self.asks.push(ask);
    }

    fn asked(&self) -> usize {
        self.asks.len() + self.refused
    }

    /// Asks on, with a bounded number under way, until so many of the requests are over.
    async fn run_until(&mut self, over: usize) {
        loop {
            while self.asks.len() < self.size.requests && self.asked() < self.over + self.size.window {
                self.ask().await;
            }
            let (asked, before) = (self.asked(), self.over);
            self.over = self
                .journal
                .until("requests are over", |read| (read.over > before || read.over == asked).then_some(read.over));
            let all_are_asked = self.asks.len() == self.size.requests;
            if self.over >= over || (all_are_asked && self.over == asked) {
                return;
            }
        }
    }
}

fn organization(number: u64) -> String {
    format!("org_{number}")
}

fn processor(world: &World, number: u64) -> Process {
    let instance = format!("processor-{number}");
    world.process(Launch { instance: &instance, roles: Some("processor"), failpoint: None })
}

/// What happens to the engines around a restart, in the full storm.
async fn engines_suffer(engines: &OwnEngines, restart: usize) {
    match restart {
        3 => engines.signal(Engine::Registry, Signal::STOP),
        5 => engines.signal(Engine::Registry, Signal::CONT),
        7 => {
            engines.signal(Engine::Kafka, Signal::KILL);
            eventually("the broker is started again", async || {
                let status = engines.status(Engine::Kafka);
                (status.restarts == 1 && status.state == EngineState::Running).then_some(())
            })
            .await;
        }
        9 => engines.signal(Engine::ClickHouse, Signal::STOP),
        11 => engines.signal(Engine::ClickHouse, Signal::CONT),
        13 => engines.signal(Engine::Registry, Signal::KILL),
        14 => engines.signal(Engine::ClickHouse, Signal::KILL),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processors_that_come_and_go_and_engines_that_fail_lose_nothing() {
    let size = suite::size(&SHORT, &FULL);
    suite::case("storm", async || {
        let seed = seed();
        println!("TOLLSTREAM_FAULTS_SEED={seed}");
        let own = match suite::is_full() {
            true => Some(OwnEngines::start().await),
            false => None,
        };
        let engines = own.as_ref().map_or_else(Engines::shared, OwnEngines::addresses);
        let world = World::with(&engines, "storm", Some(size.partitions), |seeds| add_organizations(seeds, size)).await;
        let mut running: BTreeMap<u64, Process> = (0..size.processors).map(|n| (n, processor(&world, n))).collect();
        for process in running.values_mut() {
            process.ready().await;
        }
        eventually("a share for each", async || {
            for process in running.values() {
                if process.partitions().await == 0 {
                    return None;
                }
            }
            Some(())
        })
        .await;
        let books = world.process(Launch { instance: "books", roles: Some("projection,sink"), failpoint: None });
        let mut storm = Storm {
            world: &world,
            size,
            random: Random::new(seed),
            asks: Vec::new(),
            refused: 0,
            over: 0,
            set_aside: 0,
            repeats: 0,
            journal: world.journal(),
        };
        let mut killed = 0;
        for restart in 0..size.restarts {
            storm.run_until(size.requests * (restart + 1) / (size.restarts + 1)).await;
            if let Some(engines) = &own {
                engines_suffer(engines, restart).await;
            }
            let number = storm.random.below(size.processors);
            let process = running.remove(&number).expect("it runs");
            // The first is killed in any case, so that there is one; and what still starts has nothing to end in good order.
            match restart == 0 || storm.random.below(2) == 0 || !process.is_ready().await {
                true => {
                    process.kill().await;
                    killed += 1;
                }
                false => process.stop().await,
            }
            running.insert(number, processor(&world, number));
            println!("restart {} of {}: processor {number}, after {} requests", restart + 1, size.restarts, storm.over);
        }
        storm.run_until(usize::MAX).await;
        let (mut journal, mut answers) = (storm.journal, world.answers());
        // Looked at in order and once: there are many.
        let mut ended = 0;
        answers.until("every answer has its end", |read| {
            let is_over = |ask: &Ask| read.of(ask.id()).is_some_and(|answer| answer.end.is_some());
            ended += storm.asks[ended..].iter().take_while(|ask| is_over(ask)).count();
            (ended == storm.asks.len()).then_some(())
        });
        journal.until("what was set aside is", |read| {
            let aside = read.skipped.iter().filter(|reason| *reason != "duplicate").count() as u64;
            (aside >= storm.set_aside).then_some(())
        });
        world.assert_served(journal.read_all(), &answers.read, &storm.asks);
        let read = &journal.read;
        assert!(killed > 0 && read.tenures() > size.partitions as usize, "{killed} killed, {} tenures", read.tenures());
        assert!(read.skips("duplicate") as u64 >= storm.repeats, "{} repeats", storm.repeats);
        assert!(read.short_after_takeover > 0, "nobody was short of money after a restart");
        world.assert_rows_are_the_journal(read).await;
        for (_, process) in running {
            process.stop().await;
        }
        books.stop().await;
        let report = world.audit_with_rows().await;
        assert_eq!(report["not_projected"], 0, "{report:#}");
        println!("{}", report["counts"]);
        if let Some(own) = own {
            for engine in Engine::ALL {
                assert!(own.status(engine).restarts >= 1, "{engine} was not killed");
            }
            own.stop().await;
        }
    })
    .await;
}
