//! usage -> ClickHouse: one row per posting. A record that cannot be read is put aside, and the sink goes on.

use std::sync::Arc;

use clickhouse::Client;

use super::batch::{Letter, Place};
use super::reader::{Moment, Read, Source};
use super::row::UsageRow;
use super::{NAME, Options};
use crate::codec::{self, Codec};
use crate::failpoint::{Failpoint, reached};
use crate::records::Topic;
use crate::records::usage::UsageRecord;
use crate::runtime::kafka;
use crate::runtime::member::{Position, Received};

/// The table of the rows.
const TABLE: &str = "usage";

pub struct Usage {
    topic: String,
    codec: Arc<Codec>,
    dead_letter_bytes_max: usize,
}

impl Usage {
    pub fn new(options: &Options) -> Self {
        Self {
            topic: kafka::topic_name(&options.kafka, Topic::Usage),
            codec: options.codec.clone(),
            dead_letter_bytes_max: options.dead_letter_bytes_max,
        }
    }
}

const fn behind(record: Received<'_>) -> Place {
    Place { offset: record.offset + 1, tenancy: None }
}

impl Source for Usage {
    const NAME: &'static str = NAME;
    const TOPIC: Topic = Topic::Usage;
    type Item = UsageRecord;

    fn begin(&mut self, committed: &Position) -> Option<i64> {
        committed.offset
    }

    fn end(&mut self, _: i32) {}

    fn read(&mut self, record: Received<'_>) -> Read<UsageRecord> {
        match self.codec.decode::<UsageRecord>(record.payload) {
            Ok(item) => Read::Rows { item, rows: 1, end: behind(record) },
            Err(codec::Error::UnknownSchema { id }) => Read::Unknown(id),
            Err(error) => self.unreadable(record, &error),
        }
    }

    fn unreadable(&mut self, record: Received<'_>, error: &codec::Error) -> Read<UsageRecord> {
        let reason = match error {
            codec::Error::NoSuchSchema { .. } | codec::Error::BadSchema { .. } => "unknown_schema",
            _ => "undecodable",
        };
        tracing::warn!(
            kafka.topic = self.topic,
            kafka.partition = record.partition,
            kafka.offset = record.offset,
            %error,
            "a usage record cannot be read; it goes to dead-letters"
        );
        let letter = Letter::new(&self.topic, record, reason, error, self.dead_letter_bytes_max);
        match letter.encoded(&self.codec) {
            Ok(letter) => Read::Letter { letter, end: behind(record) },
            // The offset is held back by nothing then; the log is the only place left to say it.
            Err(error) => {
                tracing::error!(
                    kafka.topic = self.topic,
                    kafka.partition = record.partition,
                    kafka.offset = record.offset,
                    %error,
                    "a usage record can be neither read nor put aside"
                );
                Read::Passed
            }
        }
    }

    async fn insert(client: &Client, items: &[UsageRecord]) -> clickhouse::error::Result<()> {
        let mut insert = client.insert::<UsageRow<'_>>(TABLE).await?;
        for record in items {
            insert.write(&UsageRow::from(record)).await?;
        }
        insert.end().await
    }

    fn pass(moment: Moment) {
        match moment {
            Moment::BeforeInsert => reached(Failpoint::BeforeInsert),
            Moment::AfterInsert => reached(Failpoint::AfterInsert),
            Moment::BeforeOffsets => reached(Failpoint::BeforeRowOffsets),
            Moment::AfterOffsets => reached(Failpoint::AfterRowOffsets),
        }
    }
}
