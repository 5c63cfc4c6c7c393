//! Measures the plan: `plan RECORDS GUESTS` prints the seconds that planning over so many dumps of so many guests takes,
//! and the most memory that the process had, in MiB. For `scripts/bench`.

use bak_common::calendar::{Time, Zone};
use bak_common::config::Keep;
use bak_common::name::{DumpId, GuestName};
use bak_prune::plan::{Candidate, Decision, Terms, by_policy};
use std::time::Instant;

/// What a record holds of its own; the rest is borrowed from its guest.
struct Own {
    id: DumpId,
    started: Time,
    guest: usize,
}

impl Own {
    fn candidate<'a>(&'a self, vms: &'a [GuestName]) -> Candidate<'a> {
        let vm = &vms[self.guest];
        Candidate {
            id: &self.id,
            vm,
            kind: "qemu",
            uid: None,
            started: self.started,
            finished: self.started,
            expires: None,
            // Each guest has a directory of its own.
            place: vm.as_str(),
            fault: None,
            gone: false,
            protected: false,
            written: Some(self.started),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<i64>());
    let mut next = || args.next().unwrap_or(Ok(1));
    let (records, guests) = (next()?, next()?);
    let vms = (0..guests).map(|n| GuestName::new(format!("vm-{n}"))).collect::<Result<Vec<_>, _>>()?;
    let now: Time = "2026-11-20T12:00:00Z".parse()?;
    // Every six hours, back from now, the guests by turns and a minute after each other.
    let own = |n: i64| {
        let started = now.plus(-(n / guests) * 21_600 - (n % guests) * 60);
        let guest = usize::try_from(n % guests)?;
        Ok(Own { id: DumpId::of(&vms[guest], started), started, guest })
    };
    let own = (0..records).map(own).collect::<anyhow::Result<Vec<Own>>>()?;
    let all: Vec<Candidate> = own.iter().map(|own| own.candidate(&vms)).collect();
    let keep = Keep {
        last: Some(3),
        hourly: Some(24),
        daily: Some(7),
        weekly: Some(4),
        monthly: Some(12),
        yearly: Some(3),
        ..Keep::default()
    };
    let zone: Zone = "Europe/Berlin".parse()?;
    let begun = Instant::now();
    let items = by_policy(&all, &Terms { keep: &|_| keep.clone(), ..Terms::at(now, zone) });
    let seconds = begun.elapsed().as_secs_f64();
    let kept = items.iter().filter(|item| item.decision == Decision::Keep).count();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB").trim();
    let peak: u64 = peak.trim_end_matches(" kB").parse()?;
    println!("{seconds:.3} {} {kept}", peak / 1024);
    Ok(())
}
