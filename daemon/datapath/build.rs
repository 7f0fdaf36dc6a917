//! Builds the eBPF programs and puts the objects where `lib.rs` and `observer` include them.
//!
//! They need a compiler whose LLVM and `rust-src` match `bpf-linker`. The stable toolchain that
//! builds the rest has no `rust-src`. Debian's `rustc-web`, `cargo-web` and `rust-web-src` do
//! (`make setup` installs them). `HAUBERK_BPF_RUSTC` and `HAUBERK_BPF_CARGO` select other ones.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let ebpf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ebpf");
    println!("cargo::rerun-if-changed={}", ebpf.join("abi/src").display());
    let rustc = tool("HAUBERK_BPF_RUSTC", "/usr/bin/rustc");
    let cargo = tool("HAUBERK_BPF_CARGO", "/usr/bin/cargo");

    // Beside cargo's own folders, so that check, clippy, test and release share one build.
    let target = out.ancestors().nth(4).expect("OUT_DIR lies four levels below the target folder").join("bpf");
    for (folder, name) in [("programs", "hauberk"), ("observer", "observer")] {
        build(&ebpf.join(folder), &target, &rustc, &cargo);
        let object = target.join("bpfel-unknown-none/release").join(name);
        std::fs::copy(&object, out.join(format!("{name}.bpf.o")))
            .unwrap_or_else(|error| panic!("cannot copy {}: {error}", object.display()));
    }
}

fn build(programs: &Path, target: &Path, rustc: &Path, cargo: &Path) {
    for watched in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", programs.join(watched).display());
    }
    let status = Command::new(cargo)
        .current_dir(programs)
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        .arg("--target-dir")
        .arg(target)
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        // Debug information becomes the BTF with the types of maps and programs. Version 3 of the
        // instruction set (Linux 5.1) has 32-bit instructions.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Ctarget-cpu=v3\u{1f}-Clink-arg=--btf")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "building the eBPF programs failed ({status}); is bpf-linker installed? `make setup` installs what is missing"
        ),
        Err(error) => panic!("cannot run {}: {error}; `make setup` installs it", cargo.display()),
    }
}

fn tool(variable: &str, default: &str) -> PathBuf {
    println!("cargo::rerun-if-env-changed={variable}");
    std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from)
}
