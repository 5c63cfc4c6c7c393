//! bak-sync with a key that may only run rrsync, on a real sshd.

mod common;

use bak_tests::{Ran, check_store, noise};
use common::{DAY1, DAY2, Place};
use serde_json::json;
use std::fs;

#[test]
fn arrives_and_the_second_dump_is_a_delta() {
    for options in ["", "-munge", "-no-lock", "-no-del"] {
        let place = Place::rrsync(options);
        place.sync(["--init"]).clean();
        let out = |ran: &Ran| ran.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap();
        let mut content = noise(1, 1_000_000);
        place.wait_with("web", DAY1, &content, json!({}));
        let first = place.sync([]).clean();
        content[500_000] ^= 0xff;
        place.wait_with("web", DAY2, &content, json!({}));
        let second = place.sync([]).clean();
        assert!(out(&first) > 950_000 && out(&second) < 20_000, "{options}: {} {}", out(&first), out(&second));
        let seen = check_store(&place.far());
        assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (2, 0, 0));
        assert_eq!(place.kit.sh("find far -name '*.raw' -links +1").out, "");
    }
}
