//! Checkpoints on the `state` topic: a takeover begins behind the latest one that is whole, with the state that the whole
//! journal gives.

use std::collections::HashMap;

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;
use tollstream::audit::reader::Reader;
use tollstream::audit::statement::Statement;
use tollstream::domain::Timestamp;
use tollstream::domain::ids::partition_of;
use tollstream::records::Topic;
use tollstream::records::state::{Marker, Piece, StateRecord};
use tollstream::runtime::clock;
use tollstream::runtime::kafka;
use tollstream::runtime::publisher::Publisher;
use tollstream::runtime::restore::{Restore, Takeover};
use tollstream::runtime::room::Room;

use super::fixture::{PATIENCE, eventually};
use super::stream::{ORGANIZATION, PARTITIONS, World, question};

/// Entries of the journal after which a checkpoint is kept here.
const DISTANCE: u64 = 30;
/// Entries that a request leaves: its admission and its settlement.
const ENTRIES_OF_REQUEST: u64 = 2;

fn partition() -> i32 {
    partition_of(ORGANIZATION, PARTITIONS)
}

async fn begin(name: &str) -> World {
    let mut world = World::start(name).await;
    world.stop().await;
    world.config.processor.checkpoint_commits = DISTANCE;
    world.restart().await;
    world
}

async fn ask(world: &World, run: &str, requests: u64) {
    for number in 0..requests {
        world.ask(partition(), question(&format!("{run}-{number}"))).await;
    }
    world.terminal_of(&format!("{run}-{}", requests - 1)).await;
}

/// What the topic holds: the latest value of each key.
async fn kept(world: &World) -> HashMap<String, Vec<u8>> {
    let config = world.config.kafka.clone();
    let read = move || {
        let mut client = kafka::hot_consumer(&config, "kept");
        let consumer: BaseConsumer = client.set("enable.partition.eof", "true").create().expect("a consumer");
        let topic = kafka::topic_name(&config, Topic::State);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, partition(), Offset::Beginning).expect("a partition");
        consumer.assign(&list).expect("assigned");
        let mut latest = HashMap::new();
        loop {
            let message = match consumer.poll(PATIENCE).expect("an answer") {
                Ok(message) => message,
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return latest,
                Err(error) => panic!("{error}"),
            };
            let key = String::from_utf8(message.key().expect("a key").to_vec()).expect("text");
            match message.payload() {
                Some(payload) => latest.insert(key, payload.to_vec()),
                None => latest.remove(&key),
            };
        }
    };
    tokio::task::spawn_blocking(read).await.expect("read")
}

async fn markers(world: &World) -> Vec<Marker> {
    let kept = kept(world).await;
    let pieces = kept
        .values()
        .map(|payload| Piece::try_from(world.codec.decode::<StateRecord>(payload).expect("decoded")).expect("a piece"));
    let mut markers: Vec<Marker> = pieces
        .filter_map(|piece| match piece {
            Piece::Marker(marker) => Some(marker),
            Piece::Part(_) => None,
        })
        .collect();
    markers.sort_by_key(|marker| marker.journal_offset);
    markers
}

async fn take_over(world: &World) -> Takeover {
    let restore = Restore {
        kafka: world.config.kafka.clone(),
        codec: world.codec.clone(),
        publisher: Publisher::new(&world.config.kafka).expect("a producer"),
        owner: "test".into(),
        open_max: 100,
        room: Room::new(1 << 20),
        metrics: <_>::default(),
    };
    let handle = tokio::runtime::Handle::current();
    let taken =
        tokio::task::spawn_blocking(move || restore.take_over(partition(), &CancellationToken::new(), &handle)).await;
    taken.expect("a thread").expect("taken over")
}

/// What the journal says at a moment, and how many of its entries were read for that.
async fn statement(world: &World, at: Option<Timestamp>) -> (Statement, u64) {
    let reader = Reader {
        kafka: world.config.kafka.clone(),
        codec: world.codec.clone(),
        handle: tokio::runtime::Handle::current(),
        progress: indicatif::ProgressBar::hidden(),
    };
    let read = move || {
        let organization = ORGANIZATION.parse().expect("an id");
        let statement = reader.statement(&organization, at, clock::now(), None).expect("a statement");
        (statement, reader.progress.length().expect("a length"))
    };
    tokio::task::spawn_blocking(read).await.expect("a thread")
}

async fn overwrite(world: &World, key: &str, payload: &[u8]) {
    world.produce_with_key(Topic::State, partition(), key.as_bytes(), payload).await;
}

#[tokio::test]
async fn a_takeover_begins_behind_the_latest_checkpoint_that_is_whole() {
    let mut world = begin("checkpoints").await;
    // Two checkpoints and a little more.
    let two = async || Some(markers(&world).await).filter(|markers| markers.len() == 2);
    let mut run = 0;
    let both = loop {
        run += 1;
        ask(&world, &format!("run{run}"), DISTANCE / ENTRIES_OF_REQUEST + 1).await;
        if let Some(both) = two().await {
            break both;
        }
        assert!(run < 20, "no checkpoint after {run} runs");
    };
    world.stop().await;
    let [earlier, later] = <[Marker; 2]>::try_from(both).expect("two");
    let latest = markers(&world).await.pop().expect("a marker");
    assert!(latest.journal_offset >= later.journal_offset && later.journal_offset > earlier.journal_offset);
    assert_eq!(latest.tenure, earlier.tenure);

    let short = take_over(&world).await;
    assert_eq!(short.begin, latest.journal_offset + 1);
    assert!(short.stale.contains(&Marker::key(latest.tenure, latest.slot)));

    // So does a balance of now; one of a moment before the checkpoints reads the journal from its beginning.
    let (now, read) = statement(&world, None).await;
    assert_eq!(now.state, *short.tenure.state());
    assert_eq!(read, (now.journal_offset - short.begin).unsigned_abs());
    let (then, read) = statement(&world, Some(Timestamp::from_millis(earlier.clock.as_millis() - 1))).await;
    assert!(then.journal_offset <= earlier.journal_offset && then.journal_offset < now.journal_offset);
    assert_eq!(read, now.journal_offset.unsigned_abs());

    // A part of the latest is damaged: the one before is taken, if it is still whole.
    let parts = kept(&world).await;
    let slot = format!("{}/{}/", latest.tenure, latest.slot);
    let damaged = parts.keys().find(|key| key.starts_with(&slot)).expect("a part");
    overwrite(&world, damaged, &parts[damaged][..parts[damaged].len() / 2]).await;
    let longer = take_over(&world).await;
    assert!(longer.begin < short.begin && longer.begin > 0, "{} and {}", longer.begin, short.begin);

    // Nothing is whole: the journal holds everything.
    for key in parts.keys() {
        overwrite(&world, key, b"\0\0\0\0\x01garbage").await;
    }
    let whole = take_over(&world).await;
    assert_eq!(whole.begin, 0);
    assert!(whole.tenure.state().memory.settlements().1.count() >= 30);
    assert_eq!(whole.tenure.state(), longer.tenure.state());
    assert_eq!(statement(&world, None).await.0.state, *whole.tenure.state());
    assert_eq!(whole.tenure.state(), short.tenure.state());

    // The next owner keeps its own, and removes what is left of others.
    world.restart().await;
    ask(&world, "after", 2).await;
    eventually("only the new tenure's", async || {
        let kept = kept(&world).await;
        let own = format!("{}/", whole.tenure.id() + 1);
        (!kept.is_empty() && kept.keys().all(|key| key.starts_with(&own))).then_some(())
    })
    .await;
    world.stop().await;
    assert!(take_over(&world).await.begin > whole.begin);
}
