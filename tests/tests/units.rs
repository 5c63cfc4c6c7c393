//! The units for systemd are sound, by systemd's own look at them. (They run what the tests of pipelines run.)

use bak_tests::Kit;
use std::fs;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts");

#[test]
fn the_units_for_systemd_are_sound() {
    let kit = Kit::new();
    let mut units = 0;
    for unit in fs::read_dir(format!("{SCRIPTS}/systemd")).unwrap() {
        let path = unit.unwrap().path();
        // Nothing is installed here.
        let text = fs::read_to_string(&path).unwrap().replace("/usr/local/bin", SCRIPTS);
        kit.write(&format!("units/{}", path.file_name().unwrap().to_str().unwrap()), text);
        units += 1;
    }
    assert_eq!(units, 4);
    // What it doesn't know is a warning and no failure: nothing may be said.
    kit.sh("systemd-analyze verify --man=no units/*").clean();
    // 0 is a unit that may do nothing at all, 100 one that may do everything.
    kit.sh("systemd-analyze security --offline=true --threshold=30 --no-pager units/bak-ship.service").expect(0);
    // Timers run the service of their name.
    for name in ["bak-dump", "bak-ship"] {
        let timer = fs::read_to_string(kit.path(&format!("units/{name}.timer"))).unwrap();
        let when = timer.lines().find_map(|line| line.strip_prefix("OnCalendar=")).unwrap();
        kit.sh(&format!("systemd-analyze calendar '{when}'")).expect(0);
        assert!(kit.path(&format!("units/{name}.service")).is_file() && timer.contains("WantedBy=timers.target"));
    }
}
