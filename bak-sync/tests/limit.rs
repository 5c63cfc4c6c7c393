//! The limit on the wire, over a real sshd and on a mounted path.

mod common;

use bak_tests::{Ran, check_store, noise};
use common::Place;
use serde_json::json;
use std::fs;

const DAY1: &str = "2026-11-18T01:00:00Z";
const DAY2: &str = "2026-11-19T01:00:00Z";
const BEYOND: u64 = 64 << 10;

/// Runs passes with `limit` until nothing waits; what each has cost, and the last.
fn passes(place: &Place, limit: u64, most: usize) -> (Vec<u64>, Ran) {
    let mut costs = Vec::new();
    loop {
        let before = place.counted();
        let ran = place.sync(["--limit", &limit.to_string()]).clean();
        costs.push(place.counted() - before);
        assert!(*costs.last().unwrap() <= limit + BEYOND, "{costs:?} of {limit}");
        if check_store(&place.outbox()).whole.is_empty() {
            return (costs, ran);
        }
        assert!(ran.records()[0]["skipped"]["why"].as_str().unwrap().contains("limit"), "{}", ran.out);
        assert!(costs.len() < most, "{costs:?}: it does not end");
    }
}

#[test]
fn a_dump_larger_than_a_pass_crosses_in_slices_that_cost_little_more_than_one_go() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let web = place.wait_with("web", DAY1, &noise(1, 2_000_000), json!({}));
        let (costs, last) = passes(&place, 250_000, 12);
        assert!((8..=10).contains(&costs.len()), "{costs:?}");
        assert!(costs.iter().sum::<u64>() < 2_200_000, "{costs:?}");
        let sent = &last.records()[0]["sent"]["box"];
        assert_eq!(sent["passes"].as_u64().unwrap(), costs.len() as u64);
        let seen = check_store(&place.far());
        assert_eq!((seen.whole, seen.strange.len()), (vec![web], 0));
        assert!(!place.far().join("web/.part").exists());
    }
}

#[test]
fn a_delta_in_slices_costs_little_more_than_one_in_one_go() {
    // One write of 4 KiB in every 100, in an image of 8 MB: 80 of them, and 330 KB.
    let mut content = noise(1, 8 << 20);
    let changed = |content: &mut Vec<u8>| {
        for (i, at) in (0..content.len()).step_by(100 << 10).enumerate() {
            content[at..at + 4096].copy_from_slice(&noise(100 + i as u64, 4096));
        }
    };
    let mut one_go = 0;
    for limit in [0, 300_000, 200_000, 120_000] {
        let place = Place::new(true);
        place.wait_with("web", DAY1, &content, json!({}));
        place.sync([]).clean();
        let before = place.counted();
        let mut new = content.clone();
        changed(&mut new);
        place.wait_with("web", DAY2, &new, json!({}));
        if limit == 0 {
            place.sync([]).clean();
            one_go = place.counted() - before;
        } else {
            let (costs, last) = passes(&place, limit, 10);
            let sum: u64 = costs.iter().sum();
            let sums = 20_000 * costs.len() as u64;
            assert!(costs.len() > 1 && sum < one_go * 11 / 10 + sums, "{costs:?} against {one_go}");
            assert!(last.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap() < one_go * 11 / 10);
        }
        let seen = check_store(&place.far());
        assert_eq!((seen.whole.len(), seen.broken.len()), (2, 0));
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(place.far().join("web/web-20261118T010000Z.raw")).unwrap().nlink(), 1);
    }
    content.clear();
}
