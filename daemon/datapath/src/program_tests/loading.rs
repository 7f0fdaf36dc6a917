//! Loading: which maps there are, those that exist already, and how long the verifier takes.

use std::collections::BTreeSet;

use aya::maps::MapInfo;

use super::*;
use crate::loader::OBJECT;

#[test]
fn an_agent_takes_over_maps_of_the_one_before() {
    let bench = Bench::new(flag::SYNCED);
    let root = bench._pins.path().join("hauberk");
    let again = Datapath::load(&root, &Limits { endpoints: 10, ..Limits::default() }, AttachMode::Auto).unwrap();
    assert_eq!(again.maps().settings().unwrap().node, HERE);
    assert_eq!(again.maps().endpoints().unwrap().len(), bench.datapath.maps().endpoints().unwrap().len());
    assert!(again.resized().iter().any(|sentence| sentence.starts_with("ENDPOINTS")), "{:?}", again.resized());
}

/// A map of another version is left to the programs that use it, and every other map is kept.
#[test]
fn a_map_of_another_version_is_made_anew_and_all_others_are_kept() {
    let mut bench = Bench::new(flag::SYNCED);
    let root = bench._pins.path().join("hauberk");
    let pins = bench.datapath.pins().clone();
    bench.run(Hook::FromPod, "10.0.1.3", "10.0.2.3");
    assert!(!bench.flows().is_empty());
    let endpoints = bench.datapath.maps().endpoints().unwrap().len();
    let other = |table: &tables::Table| pins.maps().join(format!("{}_v99", table.name()));

    std::fs::rename(pins.map(&tables::flows::FLOWS), other(&tables::flows::FLOWS)).unwrap();
    let next = Datapath::load(&root, &Limits::default(), AttachMode::Auto).unwrap();
    assert!(next.maps().flows(now()).unwrap().is_empty());
    assert_eq!(next.maps().endpoints().unwrap().len(), endpoints);
    assert!(!next.begins_empty(), "no packet is judged by the flows");
    assert!(!bench.flows().is_empty(), "the earlier programs keep theirs");
    pins.forget_other_maps().unwrap();
    assert!(!other(&tables::flows::FLOWS).exists() && pins.map(&tables::flows::FLOWS).exists());

    // Without these the node would judge by what is not there.
    for table in tables::all().filter(|table| table.governs) {
        std::fs::rename(pins.map(table), other(table)).unwrap();
        let next = Datapath::load(&root, &Limits::default(), AttachMode::Auto).unwrap();
        assert!(next.begins_empty(), "{}", table.name());
    }
}

#[test]
fn a_pinned_map_of_another_shape_is_refused() {
    let bench = Bench::new(flag::SYNCED);
    let root = bench._pins.path().join("hauberk");
    let pins = bench.datapath.pins();
    std::fs::remove_file(pins.map(&tables::tunnels::PEERS)).unwrap();
    std::fs::rename(pins.map(&tables::uplinks::UPLINKS), pins.map(&tables::tunnels::PEERS)).unwrap();
    let refused = Datapath::load(&root, &Limits::default(), AttachMode::Auto).err().map(|error| error.to_string());
    let refused = refused.unwrap_or_default();
    assert!(refused.contains("PEERS") && refused.contains("uninstall"), "{refused}");
}

/// The shapes that the agent checks pins by are those of the programs' maps.
#[test]
fn the_programs_maps_have_the_shapes_of_the_layouts() {
    let bench = Bench::new(flag::SYNCED);
    for table in tables::all() {
        let info = MapInfo::from_pin(bench.datapath.pins().map(table)).unwrap();
        let expected = (table.layout.key_size, table.layout.value_size);
        assert_eq!((info.key_size(), info.value_size()), expected, "{}", table.name());
    }
}

/// Sizes, handles and capacities follow from the list of tables: a map that is missing there has
/// none of them.
#[test]
fn every_pinned_map_is_in_the_list_of_tables() {
    let bench = Bench::new(flag::SYNCED);
    let entries = std::fs::read_dir(bench.datapath.pins().maps()).unwrap();
    let pinned: BTreeSet<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let name = |table| bench.datapath.pins().map(table).file_name().unwrap().to_str().unwrap().to_owned();
    let listed: BTreeSet<String> = tables::all().map(name).collect();
    assert_eq!(pinned, listed);
    assert_eq!(tables::all().count(), listed.len(), "none is in the list twice");
}

#[test]
fn a_trial_takes_all_programs_and_leaves_nothing() {
    let folder = pins();
    let trial = folder.path().join("trial");
    assert_eq!(try_programs(&trial), Ok(7));
    assert!(!trial.exists());
}

/// The verifier walks every path of a program: a start must not wait seconds for it.
#[test]
fn the_verifier_is_done_with_each_program_soon() {
    let mut bench = Bench::new(flag::SYNCED);
    for name in Framing::PROGRAMS {
        let info = program(&mut bench.datapath.ebpf, name).unwrap().info().unwrap();
        let walked = info.verified_instruction_count().expect("Linux 5.16 says so");
        println!("{name}: {walked} instructions walked");
        assert!(walked < 60_000, "{name}: {walked} instructions walked");
    }
}

/// What a packet costs in each program, by the kernel's own clock: `make bench`.
#[test]
#[ignore = "a measurement"]
fn what_a_packet_costs_in_each_program() {
    for (services, flags) in [("", flag::SYNCED), (", services at devices", flag::SYNCED | flag::TRANSLATES)] {
        let mut bench = Bench::new(flags);
        for (hook, source, destination) in [
            (Hook::FromPod, "10.0.1.1", "10.0.2.3"),
            (Hook::ToPod, "10.0.1.3", "10.0.1.1"),
            (Hook::FromWire, "10.0.2.3", "10.0.1.3"),
            (Hook::FromWire, "192.168.0.2", "192.168.0.1"),
            (Hook::ToWire, "10.0.1.3", "10.0.2.3"),
            (Hook::ToWire, "192.168.0.1", "192.168.0.2"),
        ] {
            let frame = udp(source, destination);
            let mut times: Vec<u64> = (0..9)
                .map(|_| {
                    let options = TestRunOptions { data_in: Some(&frame), repeat: 200_000, ..TestRunOptions::new() };
                    let program = program(&mut bench.datapath.ebpf, hook.as_str()).unwrap();
                    program.test_run(options).unwrap().duration.as_nanos() as u64
                })
                .collect();
            times.sort_unstable();
            let name = hook.as_str();
            println!("{name} {source} -> {destination}{services}: {} ns ({} to {})", times[4], times[0], times[8]);
        }
    }
}

/// Linux before 6.4 may remove branches after a call of a static function: see the programs' own
/// documentation. The verifier treats a function as global if its symbol is. Hidden symbols count
/// as static; only functions that the compiler adds are hidden.
#[test]
fn every_function_is_verified_by_itself() {
    use object::{Object as _, ObjectSymbol as _, SymbolFlags, SymbolKind, elf};
    let object = object::File::parse(OBJECT).unwrap();
    let functions = || object.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    assert!(functions().count() > Framing::PROGRAMS.len());
    for function in functions() {
        let name = function.name().unwrap();
        let SymbolFlags::Elf { st_other, .. } = function.flags() else { panic!("{name} is in no ELF file") };
        let is_global = function.is_global() && st_other & 3 == elf::STV_DEFAULT;
        assert!(is_global || matches!(name, "memcpy" | "memmove" | "memset"), "{name} is not verified by itself");
    }
}
