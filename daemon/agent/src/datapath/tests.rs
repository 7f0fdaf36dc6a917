//! The programs in the kernel: loaded through its verifier and run on packets by `BPF_PROG_TEST_RUN`.

use super::*;

/// A BPF file system of this test's own, in a mount namespace of this thread's own.
fn pins() -> tempfile::TempDir {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let folder = tempfile::tempdir().unwrap();
    mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    folder
}

#[test]
fn the_verifier_accepts_every_program() {
    let folder = pins();
    let loaded = Datapath::load(&folder.path().join("hauberk"), &Limits::default(), AttachMode::Auto);
    if let Err(error) = loaded {
        panic!("{}", chain(&error));
    }
}
