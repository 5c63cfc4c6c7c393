//! One target under libFuzzer: the one that BAK_FUZZ_TARGET names. Built and called by scripts/fuzz.
#![no_main]

mod targets;

use std::sync::OnceLock;

fn target() -> fn(&[u8]) {
    static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("BAK_FUZZ_TARGET").unwrap_or_default();
        let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("BAK_FUZZ_TARGET names no target: `{name}`")).1
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| target()(data));
