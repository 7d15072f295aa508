//! Two owners of the same partitions at once: the journal alone decides who counts.

use std::collections::BTreeSet;
use std::time::Instant;

use super::log::PATIENCE;
use super::suite;
use super::world::{Ask, World};
use crate::stack::fixture::eventually;
use crate::stack::process::{Launch, Process};

/// A processor that shares its partitions with nobody: it is alone in a consumer group of its own.
fn alone(world: &mut World, instance: &str) -> Process {
    let group = format!("{}{instance}", world.config.kafka.topic_prefix);
    world.config.kafka.properties.0.insert("group.id".to_owned(), group);
    world.process(Launch { instance, roles: Some("processor"), failpoint: None })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_owners_by_force_decide_each_record_once_and_in_one_order() {
    let requests = suite::size(60, 1_000);
    suite::case("two owners by force", async || {
        let mut world = World::start("forced").await;
        let all = u64::from(world.partitions);
        let (mut one, mut two) = (alone(&mut world, "one"), alone(&mut world, "two"));
        one.ready().await;
        two.ready().await;
        let (mut asks, begun) = (Vec::new(), Instant::now());
        // The fault: each takes from the other what that one still holds, in the middle of its work.
        let lost = async |process: &Process| process.metric("tollstream_processor_tenures_lost_total").await > 0;
        while asks.len() < requests || !(lost(&one).await && lost(&two).await) {
            let id = format!("forced-{}", asks.len());
            let ask = if asks.len() % 2 == 0 { Ask::whole(&id) } else { Ask::streamed(&id, 5, 2) };
            world.ask(&ask).await;
            asks.push(ask);
            assert!(begun.elapsed() < PATIENCE, "they never met");
        }
        two.stop().await;
        eventually("one has them all", async || (one.partitions().await == all).then_some(())).await;
        let (mut journal, mut answers) = (world.journal(), world.answers());
        journal.until("every request is over", |read| asks.iter().all(|ask| read.is_over(ask.id())).then_some(()));
        answers.until("every answer has its end", |read| {
            asks.iter().all(|ask| read.of(ask.id()).is_some_and(|answer| answer.end.is_some())).then_some(())
        });
        one.stop().await;
        world.assert_served(journal.read_all(), &answers.read, &asks);
        assert_eq!(journal.read.owners(), BTreeSet::from(["one", "two"]));
        assert!(journal.read.tenures() > 2 * all as usize && !journal.read.ineffective.is_empty(), "they never met");
        world.audit();
    })
    .await;
}
