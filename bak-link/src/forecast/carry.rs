//! What one pass of bak-sync carries of what is pending. Pure.
//!
//! The limits are hard there: what does not get through in one pass goes on in the next. A dump larger than a pass gets
//! what the others leave, for which the planner sees to it that they leave its share; with an overdraft the first dump of a
//! pass is carried whole, beyond a limit of the pass though not of a period.

use bak_common::calendar::Time;
use bak_common::name::DumpId;

/// A dump on its way.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its guest's place in the list.
    pub guest: usize,
    pub id: DumpId,
    pub started: Time,
    pub linked: Time,
    pub rank: u64,
    /// Its last attempt failed. That the next one does not is assumed.
    pub failed: bool,
    pub cost: u64,
    pub bytes: u64,
    /// What it takes on the wire, and how much of that is still to come.
    pub wire: u64,
    pub left: u64,
    /// Passes that carried some of it.
    pub passes: u64,
}

/// What is left for a pass: of the limit of a pass, and of all calendar periods.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub pass: u64,
    pub period: u64,
}

impl Way {
    fn take(&mut self, bytes: u64, room: &mut Room) -> u64 {
        let taken = self.left.min(bytes);
        self.left -= taken;
        room.pass = room.pass.saturating_sub(taken);
        room.period = room.period.saturating_sub(taken);
        taken
    }
}

/// Carries `ways`, which are put into the order of bak-sync; returns the bytes that went over the wire. What has arrived
/// has nothing left.
pub fn carry(ways: &mut [Way], mut room: Room, overdraft: bool) -> u64 {
    ways.sort_by(|a, b| {
        let order = |way: &Way| (way.failed, way.linked, way.rank, way.started);
        order(a).cmp(&order(b)).then_with(|| a.id.cmp(&b.id)).then(a.guest.cmp(&b.guest))
    });
    let pass = room.pass;
    let before: Vec<u64> = ways.iter().map(|way| way.left).collect();
    let mut sum = 0;
    if let Some(first) = ways.first_mut().filter(|_| overdraft) {
        sum += first.take(room.period, &mut room);
    }
    for oversized in [false, true] {
        for way in ways.iter_mut().filter(|way| (way.cost > pass) == oversized) {
            sum += way.take(room.pass.min(room.period), &mut room);
        }
    }
    for (way, before) in ways.iter_mut().zip(before) {
        if way.left < before || before == 0 {
            way.passes += 1;
            way.failed = false;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::name::GuestName;

    fn way(rank: u64, wire: u64) -> Way {
        let started: Time = "2026-11-20T01:00:00Z".parse().unwrap();
        let id = DumpId::of(&GuestName::new(format!("g{rank}")).unwrap(), started);
        let (guest, failed, passes) = (rank as usize, false, 0);
        Way { guest, id, started, linked: started, rank, failed, cost: wire, bytes: wire, wire, left: wire, passes }
    }

    const ALL: u64 = u64::MAX;

    #[test]
    fn passes_judged_by_hand() {
        /// What waits, in any order; room of the pass and the period; overdraft; what is left by rank.
        type Case<'a> = (&'a str, &'a [u64], u64, u64, bool, &'a [u64]);
        let table: &[Case] = &[
            ("all fits", &[3, 4], 10, ALL, false, &[0, 0]),
            ("no limit", &[3, 400], ALL, ALL, false, &[0, 0]),
            ("the last is cut", &[6, 6], 10, ALL, false, &[0, 2]),
            ("oversized and alone: a whole pass", &[25], 10, ALL, false, &[15]),
            ("oversized with another: what that leaves", &[25, 3], 10, ALL, false, &[18, 0]),
            ("oversized with others that use their half", &[25, 3, 2], 10, ALL, false, &[20, 0, 0]),
            ("a period cuts", &[6, 6], 20, 8, false, &[0, 4]),
            ("nothing left of a period", &[6], 20, 0, false, &[6]),
            ("an overdraft carries the first whole", &[25, 3], 10, ALL, true, &[0, 3]),
            ("but not beyond a period", &[25, 3], 10, 20, true, &[5, 3]),
            ("an empty dump needs no room", &[0], 10, 0, false, &[0]),
        ];
        for (what, wires, pass, period, overdraft, left) in table {
            let mut ways: Vec<Way> = (1..).zip(*wires).map(|(rank, wire)| way(rank, *wire)).collect();
            ways.reverse();
            let sum = carry(&mut ways, Room { pass: *pass, period: *period }, *overdraft);
            assert_eq!(ways.iter().map(|way| way.left).collect::<Vec<_>>(), *left, "{what}");
            assert_eq!(sum, wires.iter().sum::<u64>() - left.iter().sum::<u64>(), "{what}");
        }
    }

    #[test]
    fn who_failed_goes_last() {
        let mut ways = vec![Way { failed: true, ..way(1, 6) }, way(2, 6)];
        carry(&mut ways, Room { pass: 10, period: ALL }, false);
        assert_eq!((ways[0].rank, ways[0].left, ways[1].left), (2, 0, 2));
        assert!(!ways[1].failed);
    }
}
