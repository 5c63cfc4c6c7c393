//! What must hold of every parser, whatever it is given. Each target takes any bytes and panics where something does not hold.
//! Run by libFuzzer (scripts/fuzz), and by tests/tests/fuzz.rs over the kept corpus.

mod drivers;
mod records;
mod state;
mod words;

pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 28] = [
    ("record", records::record),
    ("head", records::head),
    ("sidecar", records::sidecar),
    ("jsonl", records::jsonl),
    ("names", records::names),
    ("ledger", records::ledger),
    ("drills", records::drills),
    ("listing", records::listing),
    ("sums", records::sums),
    ("drops", records::drops),
    ("statedb", state::statedb),
    ("details", state::details),
    ("db_version", state::version),
    ("config", words::config),
    ("units", words::units),
    ("times", words::times),
    ("urls", words::urls),
    ("old_list", words::old_list),
    ("patterns", words::patterns),
    ("exec_list", drivers::exec_list),
    ("exec_say", drivers::exec_say),
    ("vbox_info", drivers::vbox_info),
    ("vbox_list", drivers::vbox_list),
    ("pve_list", drivers::pve_list),
    ("pve_conf", drivers::pve_conf),
    ("pve_log", drivers::pve_log),
    ("archives", drivers::archives),
    ("qemu_info", drivers::qemu_info),
];

/// Up to the first newline, and what follows it.
fn first_line(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    (&data[..at], data.get(at + 1..).unwrap_or_default())
}

/// What a terminal may be given.
fn assert_printable(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
}
