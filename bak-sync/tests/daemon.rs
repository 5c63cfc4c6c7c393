//! bak-sync to a real rsync daemon on loopback.

mod common;

use bak_tests::rsyncd::{Relay, Rsyncd};
use bak_tests::{Ran, check_store, noise};
use common::{DAY1, DAY2, Place};
use serde_json::json;

#[test]
fn arrives_and_the_second_dump_is_a_delta_counted_to_the_byte() {
    let place = Place::daemon("");
    let relay = Relay::start(place.rsyncd.as_ref().unwrap().port);
    let url = format!("box=rsync://127.0.0.1:{}/bak", relay.port);
    let sync = || place.kit.run("bak-sync", ["--outbox", "outbox", "--dest", &url]).clean();
    let out = |ran: &Ran| ran.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap();
    let mut content = noise(1, 2_000_000);
    place.wait_with("web", DAY1, &content, json!({}));
    let first = sync();
    content[1_000_000] ^= 0xff;
    place.wait_with("web", DAY2, &content, json!({}));
    let second = sync();
    assert!(out(&first) > 1_900_000 && out(&second) < 30_000, "{} {}", out(&first), out(&second));
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (2, 0, 0));
    assert_eq!(place.counted(), relay.seen());
}
