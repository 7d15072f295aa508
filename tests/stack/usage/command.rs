//! `tollstream query` as people and scripts call it.

use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::guide::world_of_the_day;
use super::world::World;

fn query(world: &World, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .arg("query")
        .args(["--clickhouse", &world.clickhouse.url, "--database", &world.clickhouse.database])
        .args(arguments)
        .output()
        .expect("tollstream runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const DAY: [&str; 4] = ["--param", "from_day=2026-11-22", "--param", "until_day=2026-11-23"];

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_query_is_a_table_json_or_csv() {
    let world = world_of_the_day().await;
    let by_user = [&["cost", "--param", "by=user"][..], &DAY].concat();
    let shown = query(&world, &by_user);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let table = text(&shown.stdout);
    let mut lines = table.lines();
    assert!(lines.next().is_some_and(|head| head.contains("NAME") && head.contains("COST USD")), "{table}");
    assert_eq!(lines.count(), 3, "{table}");

    let as_json = query(&world, &[&by_user[..], &["--json"]].concat());
    let answer: Value = serde_json::from_slice(&as_json.stdout).expect("JSON");
    assert_eq!((&answer["query"], &answer["parameters"]["by"]), (&json!("cost"), &json!("user")));
    assert_eq!(answer["parameters"]["organization"], "");
    let ada = answer["rows"].as_array().unwrap().iter().find(|row| row["name"] == "ada").expect("ada");
    // As in the guide: 0.012624, 0.0119 and 0.00914 dollars.
    assert_eq!((&ada["cost_usd"], &ada["requests"], &ada["unknown_cost"]), (&json!("0.033664"), &json!(8), &json!(0)));

    let as_csv = text(&query(&world, &[&by_user[..], &["--csv"]].concat()).stdout);
    assert!(as_csv.starts_with("\"name\",\"requests\",") && as_csv.contains("\"ada\",8,8,0.033664,0,"), "{as_csv}");

    let nothing = query(&world, &["cost", "--param", "organization=nobody"]);
    assert_eq!((nothing.status.code(), text(&nothing.stderr).trim()), (Some(1), "there are no rows"));

    // A value is a value, whatever it looks like.
    let injected = query(&world, &["cost", "--json", "--param", "organization=' OR 1 = 1 --"]);
    assert_eq!(injected.status.code(), Some(1), "{}", text(&injected.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_can_be_listed_without_clickhouse() {
    let listed = Command::new(env!("CARGO_BIN_EXE_tollstream")).args(["query"]).output().expect("tollstream runs");
    let (status, listed) = (listed.status, text(&listed.stdout));
    assert!(status.success());
    for line in [
        "cost\n    What was spent, by",
        "    --param by = model: what a line is (model, organization, tag, ",
        "    --param from_day = today-30: first day, UTC",
        "    --param organization: who pays",
    ] {
        assert!(listed.contains(line), "{line}: {listed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_says_what_to_do_and_is_an_exit_code_of_its_own() {
    let world = World::new().await;
    // It takes the connection and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("http://{}", listener.local_addr().expect("an address"));
    let table: [(&[&str], &str); 8] = [
        (&["costs"], "there is no saved query \"costs\"; there are budget_burn_down, cache_savings, cost, "),
        (&["budget_burn_down"], "budget_burn_down needs organization, who pays; give --param organization="),
        (&["cost", "--param", "who=me"], "cost has no parameter \"who\"; it has by, tag, organization, "),
        (&["cost", "--param", "from_day=yesterday"], "from_day = \"yesterday\" is not a day such as 2026-11-22"),
        (&["cost", "--param", "by=team"], "by = \"team\" is not one of model, organization, tag"),
        (&["cost", "--clickhouse", "http://127.0.0.1:1"], "clickhouse at http://127.0.0.1:1 is away: "),
        (&["cost", "--database", "nowhere"], "nowhere"),
        (&["cost", "--timeout", "1", "--clickhouse", &silent], "cost took longer than 1 s; ask for fewer days"),
    ];
    for (arguments, expected) in table {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
        command.arg("query");
        if !arguments.contains(&"--clickhouse") {
            command.args(["--clickhouse", &world.clickhouse.url]);
        }
        if !arguments.contains(&"--database") {
            command.args(["--database", &world.clickhouse.database]);
        }
        let output = command.args(arguments).output().expect("tollstream runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(told.starts_with("could not look: ") && told.contains(expected), "{arguments:?}: {told}");
        let output = command.arg("--json").output().expect("tollstream runs");
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(told["error"].as_str().is_some_and(|told| told.contains(expected)), "{told}");
    }
    let malformed = query(&world, &["cost", "--param", "by"]);
    assert_eq!(malformed.status.code(), Some(2));
    assert!(text(&malformed.stderr).contains("is not of the form NAME=VALUE"), "{}", text(&malformed.stderr));
}
