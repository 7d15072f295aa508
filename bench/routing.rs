//! What routing costs on one core: the decision itself, and the classifier before it.

#![expect(clippy::expect_used, reason = "it ends when something that it makes up is wrong")]

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tollstream::domain::{ModelName, OrganizationId, RequestId, Timestamp};
use tollstream::processor::content;
use tollstream::processor::health::Health;
use tollstream::processor::intent::{Builtin, Classifier as _, Conversation, measures};
use tollstream::processor::router::{Asked, Under, route};
use tollstream::records::control::{ControlRecord, Entity, Organization, Stamp};
use tollstream::topology::{Files, Seeds};

const ENGLISH: &str = "Our nightly report went from 4 minutes to almost 2 hours after we loaded last year's archive into the same \
    table. I compared the plans, and the only difference is a sequential scan. What should I look at first, and why? ";
const PORTUGUESE: &str = "Nosso contrato vence no fim do mês e só renovamos se o reajuste ficar no índice; a concorrência ofereceu quinze \
    por cento a menos por assento. O que vocês conseguem fazer por nós, e até quando? ";

fn text(of: &str, bytes: usize) -> String {
    let mut text = of.repeat(bytes / of.len() + 1);
    text.truncate(text.floor_char_boundary(bytes));
    text
}

fn routing(criterion: &mut Criterion) {
    let mut tables = Seeds::parse(&Files::embedded(), &mut Vec::new()).tables();
    let (now, acme) = (Timestamp::from_millis(1_795_000_000_000), OrganizationId::parse("acme").expect("an id"));
    let stamp = Stamp { change_id: String::new(), actor: String::new(), at: now };
    let entity = Entity::Organization(Organization::named("Acme"));
    let offset = tables.offset() + 1;
    tables.apply(offset, &ControlRecord::put("acme", entity, -1, stamp)).expect("applied");
    let terms = tables.terms(&acme, None).expect("terms");
    let body = br#"{"messages":[{"role":"user","content":"Where is my order 88213?"}]}"#;
    let mut content = content::read(body).expect("a request");
    content.classify(&Builtin::new());
    let (model, tags) = (ModelName::parse("auto").expect("a name"), BTreeMap::new());
    let request_id = RequestId::parse("r").expect("an id");
    let under = Under { control: &tables, terms: &terms, at: now, health: Health::Unknown };
    let features = &content.features;
    let asked = Asked { model: &model, request_id: &request_id, features, user_tier: None, tags: &tags };
    criterion.bench_function("route", |bencher| bencher.iter(|| black_box(route(&under, black_box(&asked)))));
    for (name, text) in [
        ("1 KB of English", text(ENGLISH, 1_000)),
        ("1 KB of Portuguese", text(PORTUGUESE, 1_000)),
        ("4 KB of English", text(ENGLISH, 4_000)),
    ] {
        let said = Conversation { last_user: &text, earlier_user: None, earlier_assistant: None, turns: 0 };
        criterion.bench_function(&format!("classify and measure {name}"), |bencher| {
            bencher.iter(|| black_box((Builtin::new().classify(black_box(&said)), measures(&said))));
        });
    }
}

criterion_group!(benches, routing);
criterion_main!(benches);
