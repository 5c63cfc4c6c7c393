//! Which dumps are drilled. Pure.
//!
//! Of each guest the newest good dump; or the one that a limit cut off, while that is there, which goes before all others: else
//! what has come of it would never be used. Then who was never drilled, then whose last drill is longest ago; where that is the
//! same, by chance, which the seed decides.

use bak_common::calendar::Time;
use bak_common::drills::Drill;
use bak_common::name::DumpId;
use bak_common::record::{Dump, GuestKey};
use bak_common::store::Entry;
use bak_common::units::show_size;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

use super::Request;

/// A dump, and why it is drilled; or as an error, why it is not.
pub struct Choice<'a> {
    pub entry: &'a Entry,
    pub decision: Result<String, String>,
}

/// What is known of dumps beside their records.
pub struct World<'a> {
    /// Why one cannot be drilled, if that is so.
    pub able: &'a dyn Fn(&Dump) -> Result<(), String>,
    /// Whether some of one has been fetched.
    pub begun: &'a dyn Fn(&Entry) -> bool,
}

/// Decides on `dumps`, in the order of their start: those that are drilled in their order, then the others.
pub fn choose<'a>(
    dumps: &'a [Entry],
    history: &[Drill],
    world: &World,
    request: &Request,
    seed: u64,
) -> Vec<Choice<'a>> {
    let (mut last, mut ended) = (HashMap::<GuestKey, Time>::new(), HashMap::<&DumpId, &Drill>::new());
    for drill in history {
        ended.insert(&drill.id, drill);
        if !drill.is_skipped() {
            last.insert(drill.key(), drill.at);
        }
    }
    // One whose fetching failed waits for its turn, so that it does not keep the others from theirs.
    let goes_on =
        |entry: &Entry| (world.begun)(entry) && ended.get(&entry.dump.id).is_none_or(|drill| drill.is_skipped());
    let mut newest: HashMap<GuestKey, (bool, &Entry)> = HashMap::new();
    for entry in dumps.iter().filter(|entry| entry.is_good()) {
        let begun = goes_on(entry);
        if begun || !newest.get(&entry.dump.key()).is_some_and(|(begun, _)| *begun) {
            newest.insert(entry.dump.key(), (begun, entry));
        }
    }
    let chance = |entry: &Entry| Sha256::digest(format!("{seed} {:?}", entry.dump.key()));
    let mut order: Vec<(bool, &Entry)> = newest.into_values().collect();
    order.sort_by_cached_key(|(begun, entry)| (!begun, last.get(&entry.dump.key()).copied(), chance(entry)));
    let (mut taken, mut bytes) = (0, 0_u64);
    let mut decide = |begun: bool, entry: &Entry| {
        if let Err(why) = (world.able)(&entry.dump) {
            return Err(format!("dumps of the driver {} cannot be drilled: {why}", entry.dump.driver));
        }
        if taken >= request.sample {
            return Err(format!("not in this sample of {}", request.sample));
        }
        let sum = bytes.saturating_add(entry.dump.bytes);
        if sum > request.max_bytes {
            let (size, most) = (show_size(entry.dump.bytes), show_size(request.max_bytes - bytes));
            return Err(format!("it holds {size}, and {most} are left of --max-bytes"));
        }
        (taken, bytes) = (taken + 1, sum);
        Ok(match last.get(&entry.dump.key()) {
            _ if begun => "it was begun, and goes on".to_owned(),
            None => "its guest was never drilled".to_owned(),
            Some(at) => format!("the last drill of its guest was {at}"),
        })
    };
    let (yes, no): (Vec<_>, Vec<_>) = order
        .into_iter()
        .map(|(begun, entry)| Choice { entry, decision: decide(begun, entry) })
        .partition(|choice| choice.decision.is_ok());
    yes.into_iter().chain(no).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::name::{GuestName, Stem};
    use bak_common::record::Guest;

    fn entry(vm: &str, day: u32, bytes: u64, good: bool) -> Entry {
        let guest = Guest::new(GuestName::new(vm).unwrap(), "qemu", "image");
        let time: Time = format!("2026-11-{day:02}T01:00:00Z").parse().unwrap();
        let mut dump = Dump::of(&guest, time, Stem::of(&guest.vm, time));
        dump.bytes = bytes;
        Entry {
            dump,
            place: vm.into(),
            fault: (!good).then(|| "it is bad".to_owned()),
            unfit: None,
            inodes: Vec::new(),
        }
    }

    fn ids(dumps: &[Entry], history: &[Drill], sample: u64, max_bytes: u64, seed: u64) -> Vec<String> {
        let request = Request { sample, max_bytes, seed: None, to: None, work: None, store: None };
        let able = |dump: &Dump| if dump.vm.as_str() == "odd" { Err("odd".to_owned()) } else { Ok(()) };
        let begun = |entry: &Entry| entry.unfit.is_some();
        let chosen = choose(dumps, history, &World { able: &able, begun: &begun }, &request, seed);
        chosen.iter().filter(|one| one.decision.is_ok()).map(|one| one.entry.dump.id.to_string()).collect()
    }

    #[test]
    fn who_was_not_drilled_for_longest() {
        let dumps = [
            entry("a", 1, 10, true),
            entry("b", 1, 10, true),
            entry("odd", 1, 10, true),
            entry("a", 2, 10, true),
            entry("c", 2, 10, true),
            entry("a", 3, 10, false),
        ];
        let at = |entry: &Entry, day: u32| {
            Drill::of(&entry.dump, "box", format!("2026-11-{day:02}T05:00:00Z").parse().unwrap())
        };
        // The newest good one; those that were never drilled first, then the longest ago.
        let history = [at(&dumps[1], 5), at(&dumps[0], 6)];
        assert_eq!(
            ids(&dumps, &history, 3, 100, 1),
            ["c@20261102T010000Z", "b@20261101T010000Z", "a@20261102T010000Z"]
        );
        assert_eq!(ids(&dumps, &history, 1, 100, 1), ["c@20261102T010000Z"]);
        // What is too large gives way to the next.
        assert_eq!(ids(&dumps, &history, 9, 25, 1).len(), 2);
        assert!(ids(&dumps, &history, 9, 9, 1).is_empty() && ids(&dumps, &history, 0, 99, 1).is_empty());
        // What was begun goes before all, though a newer one is there; not so where it failed.
        let mut some = dumps.clone();
        some[0].unfit = Some("begun".into());
        let cut = |decision: &str| Drill { decision: decision.into(), ..at(&dumps[0], 7) };
        assert_eq!(ids(&some, &[history[0].clone(), cut("skipped")], 1, 100, 1), ["a@20261101T010000Z"]);
        assert_eq!(ids(&some, &[history[0].clone()], 1, 100, 1), ["a@20261101T010000Z"]);
        assert_eq!(ids(&some, &[history[0].clone(), cut("failed")], 2, 100, 1)[1], "b@20261101T010000Z");
        // What a limit cut off was not drilled.
        assert_eq!(ids(&dumps, &[history[0].clone(), cut("skipped")], 3, 100, 1)[2], "b@20261101T010000Z");
        // By chance, and the same by the same seed; each has its turn.
        let firsts: std::collections::BTreeSet<String> =
            (0..40).flat_map(|seed| ids(&dumps, &[], 1, 100, seed)).collect();
        assert_eq!(firsts.len(), 3);
        assert_eq!(ids(&dumps, &[], 3, 100, 7), ids(&dumps, &[], 3, 100, 7));
    }
}
