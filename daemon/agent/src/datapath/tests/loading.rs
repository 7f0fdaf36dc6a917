//! Loading: maps that are there already, and how long the verifier takes.

use super::*;

#[test]
fn an_agent_takes_over_maps_of_the_one_before() {
    let bench = Bench::new(flag::SYNCED);
    let root = bench._pins.path().join("hauberk");
    let again = Datapath::load(&root, &Limits { endpoints: 10, ..Limits::default() }, AttachMode::Auto).unwrap();
    assert_eq!(again.maps().settings().unwrap().node, HERE);
    assert_eq!(again.maps().endpoints().unwrap().len(), bench.datapath.maps().endpoints().unwrap().len());
    assert!(again.resized().iter().any(|sentence| sentence.starts_with("ENDPOINTS")), "{:?}", again.resized());
}

/// The verifier walks every path there is: a start must not wait for it for seconds.
#[test]
fn the_verifier_is_done_with_each_program_soon() {
    let mut bench = Bench::new(flag::SYNCED);
    for name in Framing::PROGRAMS {
        let info = program(&mut bench.datapath.ebpf, name).unwrap().info().unwrap();
        let walked = info.verified_instruction_count().expect("Linux 5.16 says so");
        println!("{name}: {walked} instructions walked");
        assert!(walked < 100_000, "{name}: {walked} instructions walked");
    }
}
