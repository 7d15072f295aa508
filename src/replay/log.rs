//! Where a replay reads: the topics of Kafka, or an archive of them. Nothing is ever written there.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::time::Instant;

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::run::Error;
use crate::audit::Place;
use crate::audit::ahead::{Ahead, read_ahead};
use crate::audit::plan::{CALL_TIMEOUT, Extent, kept};
use crate::audit::reader::{POLL, Reader, STALL};
use crate::control::rules::Rules;
use crate::records::Topic;
use crate::records::journal::Entry;
use crate::records::requests::{Request, RequestRecord};
use crate::runtime::kafka;

/// What a replay reads of: first and next offset of each partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub journal: BTreeMap<i32, Range<i64>>,
    pub requests: BTreeMap<i32, Range<i64>>,
    pub control: Range<i64>,
    /// That the topics have.
    pub partitions: u32,
}

/// The logs that are replayed.
pub trait Log: Sync {
    /// What there is.
    fn kept(&self) -> Result<Kept, Error>;

    /// The rules of every moment before an offset of control.
    fn rules(&self, end: i64) -> Result<Rules, Error>;

    /// Gives the entries of a partition of the journal from its beginning on, until it is told to end.
    fn journal(
        &self,
        partition: i32,
        offsets: Range<i64>,
        take: &mut dyn FnMut(i64, Entry) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error>;

    /// The records of a partition of `requests` from an offset on.
    fn requests(&self, partition: i32, from: i64) -> Result<Box<dyn Requests + '_>, Error>;

    /// Whether they have their content.
    fn has_content(&self) -> bool;
}

/// Records of `requests`, asked for in the order of their offsets.
pub trait Requests {
    /// The record at an offset; `None`: it is kept no more, or cannot be understood.
    fn at(&mut self, offset: i64) -> Result<Option<Request>, Error>;
}

impl Log for Reader {
    fn kept(&self) -> Result<Kept, Error> {
        let kept = kept(self)?;
        let partitions = u32::try_from(kept.journal.len()).unwrap_or(u32::MAX);
        Ok(Kept { journal: kept.journal, requests: kept.requests, control: kept.control, partitions })
    }

    fn rules(&self, end: i64) -> Result<Rules, Error> {
        Ok(Reader::rules(self, &Extent { topic: Topic::Control, partition: 0, offsets: 0..end })?)
    }

    fn journal(
        &self,
        partition: i32,
        offsets: Range<i64>,
        take: &mut dyn FnMut(i64, Entry) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let extent = Extent { topic: Topic::Journal, partition, offsets };
        let read = |ahead: &mut Ahead| self.each_given(&extent, ahead).map_err(Error::from);
        let taken = read_ahead(read, |offset, payload| {
            let place = Place { topic: Topic::Journal, partition, offset };
            match take(offset, self.entry(place, payload)?)? {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Enough),
            }
        });
        match taken {
            Err(Error::Enough) => Ok(()),
            taken => taken,
        }
    }

    fn requests(&self, partition: i32, from: i64) -> Result<Box<dyn Requests + '_>, Error> {
        let (consumer, mut list) = (self.consumer("replay")?, TopicPartitionList::new());
        let name = kafka::topic_name(&self.kafka, Topic::Requests);
        list.add_partition_offset(&name, partition, Offset::Offset(from)).map_err(|e| self.failed(e))?;
        consumer.assign(&list).map_err(|e| self.failed(e))?;
        Ok(Box::new(OnKafka { reader: self, consumer, partition, next: None }))
    }

    fn has_content(&self) -> bool {
        true
    }
}

/// A partition of `requests` as it is read.
struct OnKafka<'a> {
    reader: &'a Reader,
    consumer: BaseConsumer,
    partition: i32,
    /// Read already, and not asked for yet.
    next: Option<(i64, Vec<u8>)>,
}

impl Requests for OnKafka<'_> {
    fn at(&mut self, wanted: i64) -> Result<Option<Request>, Error> {
        let mut since = Instant::now();
        loop {
            if let Some((offset, payload)) = self.next.take_if(|(offset, _)| *offset <= wanted) {
                if offset < wanted {
                    continue;
                }
                let place = Place { topic: Topic::Requests, partition: self.partition, offset };
                let record = match self.reader.decode::<RequestRecord>(place, &payload) {
                    Ok(record) => record,
                    Err(crate::audit::reader::Error::Unreadable { .. }) => return Ok(None),
                    Err(error) => return Err(error.into()),
                };
                return Ok(Request::try_from(record).ok());
            }
            if self.next.is_some() {
                return Ok(None);
            }
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    since = Instant::now();
                    self.next = Some((message.offset(), message.payload().unwrap_or_default().to_vec()));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    // Nothing more, or not yet: only the broker knows.
                    let name = kafka::topic_name(&self.reader.kafka, Topic::Requests);
                    let asked = self.consumer.fetch_watermarks(&name, self.partition, CALL_TIMEOUT);
                    let (low, high) = asked.map_err(|e| self.reader.failed(e))?;
                    if !(low..high).contains(&wanted) {
                        return Ok(None);
                    }
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                    return Err(self.reader.failed(error).into());
                }
                // The client comes back from other errors by itself.
                Some(Err(_)) | None if since.elapsed() > STALL => {
                    return Err(Error::Stalled {
                        topic: Topic::Requests.name(),
                        partition: self.partition,
                        offset: wanted,
                    });
                }
                Some(Err(_)) | None => {}
            }
        }
    }
}
