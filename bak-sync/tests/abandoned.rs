//! Dumps that are taken out of the outbox after they were begun: the next pass removes what had arrived of them, and
//! nothing else.

mod common;

use bak_tests::{check_store, noise};
use common::{DAY1, DAY2, Place};
use serde_json::json;
use std::fs;

/// A place with a dump that was cut after 600 KB of 2 MB, and its name.
fn begun(ssh: bool) -> (Place, String) {
    let place = Place::new(ssh);
    let web = place.wait_with("web", DAY1, &noise(1, 2_000_000), json!({}));
    let ran = place.sync(["--limit", "600K"]).clean();
    assert!(ran.records()[0]["skipped"].is_object(), "{}", ran.out);
    let part = place.far().join("web/.part/web-20261118T010000Z.raw");
    assert!(fs::metadata(part).unwrap().len() > 100_000);
    (place, web)
}

/// The files over there but for the identity.
fn over_there(place: &Place) -> Vec<String> {
    let found = place.kit.sh("cd far && find . -type f ! -name .bak-store | LC_ALL=C sort").clean();
    found.out.lines().map(str::to_owned).collect()
}

#[test]
fn what_had_arrived_of_a_dump_that_was_taken_out_goes_and_nothing_else() {
    for ssh in [true, false] {
        let (place, web) = begun(ssh);
        // What others have there, under names that are much alike.
        let kept = ["./web/.part/web-20261119T010000Z.raw", "./web/mine", "./web/web-20261118T010000Z.raw.mine"];
        kept.iter().for_each(|name| fs::write(place.far().join(name), "mine").unwrap());
        // As long as it is pending it stays, whatever goes with it.
        place.sync(["--limit", "10K"]).clean();
        assert_eq!(over_there(&place).len(), 4);
        place.kit.sh("rm outbox/web/web-20261118T010000Z.*").clean();
        let log = place.kit.path("log");
        place.kit.write("bak.toml", format!("log = \"{}\"\n", log.display()));
        place.sync(["--config", "bak.toml"]).clean();
        assert_eq!(over_there(&place), kept, "ssh: {ssh}");
        let told = fs::read_to_string(&log).unwrap();
        assert!(told.contains("\"decision\":\"cleared\"") && told.contains(&web), "{told}");
        // Once only.
        fs::write(place.far().join("web/.part/web-20261118T010000Z.raw"), "mine now").unwrap();
        place.sync([]).clean();
        assert_eq!(over_there(&place).len(), 4);
    }
}

#[test]
fn what_has_a_sidecar_over_there_was_sent_or_waits_again_is_left_alone() {
    // Somebody else has finished it.
    let (place, _) = begun(true);
    place.kit.sh("mv outbox/web/web-20261118T010000Z.* far/web/").clean();
    let before = over_there(&place);
    place.sync([]).clean();
    assert_eq!(over_there(&place), before);
    // It was taken out, and linked again.
    let (place, web) = begun(false);
    place.kit.sh("rm -r outbox/web").clean();
    place.wait_with("web", DAY1, &noise(1, 2_000_000), json!({}));
    let sent = place.sync([]).clean().records()[0]["sent"]["box"].clone();
    assert!(sent["wire_out"].as_u64().unwrap() < 2_100_000, "{sent}: what had arrived went anew");
    assert_eq!(check_store(&place.far()).whole, [web.as_str()]);
    // It has arrived, and is taken away over there by hand: nothing reminds of it.
    place.wait_there("web", DAY2, 1000, json!({}));
    place.sync([]).clean();
    assert!(!place.outbox().join(".bak/begun/web").exists());
    // Where the far side is another one nothing is removed.
    let (place, _) = begun(true);
    place.kit.sh("rm -r outbox/web").clean();
    let identity = place.far().join(".bak-store");
    let text = fs::read(&identity).unwrap();
    fs::write(&identity, "{\"v\":1,\"id\":\"another\"}").unwrap();
    place.sync([]).expect(4).says("is another one");
    assert_eq!(over_there(&place).len(), 1);
    fs::write(&identity, text).unwrap();
    place.sync([]).clean();
    assert!(over_there(&place).is_empty());
}
