//! How long the planner alone takes, for `scripts/bench`: `BAK_PLAN_RECORDS=1000000 cargo test --release -p bak-link
//! plan::speed -- --nocapture`. Without that it only plans a few records.

use super::samples::*;
use super::*;
use bak_common::units::limit;
use std::time::Instant;

#[test]
fn many_records() {
    let wanted = std::env::var("BAK_PLAN_RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let records: i64 = wanted;
    let each = 100;
    let guest = |at: i64| (0..each).fold(guest(&format!("vm-{at:06}")), |guest, on| guest.dumped(on, 1 << 20));
    let cap = Cap { limit: limit("10G").unwrap().unwrap(), used: 0 };
    let facts = Facts { guests: (0..records / each).map(guest).collect(), caps: vec![cap], passes: vec![] };
    let options = Options { now: day(each), skew_s: 3600, force: false, oversize: true, overdraft: false };
    let begun = Instant::now();
    let plan = plan(&facts, &options);
    println!("planned {records} records in {:.3} s", begun.elapsed().as_secs_f64());
    assert_eq!(plan.items.len() as i64, records / each * each);
}
