use std::fs;
use std::time::Duration;

use futures_util::FutureExt;
use hauberk_api::Attach;

use super::*;

pub(super) fn settings() -> Settings {
    Settings {
        pod_ranges: vec!["10.244.1.0/29".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
        cluster_ranges: vec!["10.244.0.0/16".parse().unwrap()],
        route_mtu: 1420,
        device_mtu: 1500,
        gso_max_size: 60_000,
        limit: 100,
        ..Settings::default()
    }
}

pub(super) fn request(container: &str) -> Reserve {
    Reserve { container: container.into(), interface: "eth0".into(), pod: None, netns: "/run/netns/x".into() }
}

fn attach() -> Attach {
    Attach { host_index: 7, host_mac: [2, 0, 0, 0, 0, 1].into(), pod_mac: [2, 0, 0, 0, 0, 2].into() }
}

pub(super) fn open(folder: &tempfile::TempDir) -> Keeper {
    let (attachments, problems) = Attachments::open(folder.path().join("attachments"), settings()).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    attachments.keeper().now_or_never().unwrap()
}

#[test]
fn a_reservation_is_kept_repeated_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut attachments = open(&folder);
    let first = attachments.reserve(&request("a"), |_| false).unwrap();
    assert_eq!(first.addresses, ["10.244.1.2/32".parse().unwrap(), "fd00:10:244:1::2/128".parse().unwrap()]);
    assert_eq!(first.gateways, ["169.254.1.1".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
    assert_eq!(first.host_interface.len(), 14);
    assert_eq!(attachments.reserve(&request("a"), |_| false).unwrap(), first);
    attachments.attach("a", "eth0", attach()).unwrap();

    let mut again = open(&folder);
    assert_eq!(again.reserve(&request("a"), |_| false).unwrap(), first);
    assert_eq!(again.find("a", "eth0").unwrap().attach, Some(attach()));
    assert_ne!(again.reserve(&request("b"), |_| false).unwrap().addresses, first.addresses);
    assert_eq!(again.list().len(), 2);
}

#[test]
fn a_released_address_is_not_given_at_once_even_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut attachments = open(&folder);
    let first = attachments.reserve(&request("a"), |_| false).unwrap();
    assert!(attachments.release("a", "eth0").unwrap().is_some());
    assert!(attachments.release("a", "eth0").unwrap().is_none());
    let mut again = open(&folder);
    assert_eq!(again.list().len(), 0);
    assert_ne!(again.reserve(&request("b"), |_| false).unwrap().addresses, first.addresses);
}

#[test]
fn claimed_and_excluded_addresses_are_left_out_and_the_end_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut attachments = open(&folder);
    let excluded = "10.244.1.3".parse().unwrap();
    attachments.set_settings(Settings { excluded: [excluded].into(), ..settings() });
    let claimed: IpAddr = "10.244.1.4".parse().unwrap();
    let mut given = BTreeSet::new();
    for name in ["a", "b", "c"] {
        given.insert(attachments.reserve(&request(name), |a| a == claimed).unwrap().addresses[0].addr().to_string());
    }
    assert_eq!(given.into_iter().collect::<Vec<_>>(), ["10.244.1.2", "10.244.1.5", "10.244.1.6"]);
    let error = attachments.reserve(&request("d"), |a| a == claimed).unwrap_err();
    assert!(matches!(&error, AttachmentError::Exhausted { ranges, .. } if ranges == "10.244.1.0/29"), "{error}");
    assert_eq!(attachments.list().len(), 3);
    attachments.release("a", "eth0").unwrap();
    assert!(attachments.reserve(&request("d"), |a| a == claimed).is_ok());
}

#[test]
fn no_ranges_too_many_and_bad_names_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut attachments = open(&folder);
    // As before the Node object has been read: there is no limit either, but the plugin may try
    // again.
    attachments.set_settings(Settings { pod_ranges: Vec::new(), limit: 0, ..settings() });
    assert!(matches!(attachments.reserve(&request("a"), |_| false), Err(AttachmentError::NoRanges { .. })));
    attachments.set_settings(Settings { limit: 0, ..settings() });
    assert!(matches!(attachments.reserve(&request("a"), |_| false), Err(AttachmentError::TooMany { .. })));
    attachments.set_settings(settings());
    for container in ["", "../a", "a/b", "-a", "a:b", &"x".repeat(201)] {
        assert!(
            matches!(attachments.reserve(&request(container), |_| false), Err(AttachmentError::Name { .. })),
            "{container}"
        );
    }
    for interface in ["", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
        let request = Reserve { interface: interface.into(), ..request("a") };
        assert!(matches!(attachments.reserve(&request, |_| false), Err(AttachmentError::Name { .. })), "{interface}");
    }
    assert!(matches!(attachments.attach("a", "eth0", attach()), Err(AttachmentError::Unknown { .. })));
}

#[test]
fn a_spoilt_file_rejects_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut attachments = open(&folder);
    attachments.reserve(&request("a"), |_| false).unwrap();
    attachments.reserve(&request("b"), |_| false).unwrap();
    let state = folder.path().join("attachments");
    fs::write(state.join("b:eth0.json"), "{\"version\":1").unwrap();
    fs::copy(state.join("a:eth0.json"), state.join("c:eth0.json")).unwrap();
    fs::write(state.join(".newhalf"), "x").unwrap();
    attachments.reserve(&request("d"), |_| false).unwrap();
    attachments.attach("d", "eth0", attach()).unwrap();
    let whole = fs::read_to_string(state.join("d:eth0.json")).unwrap();
    fs::write(state.join("d:eth0.json"), whole.replace("02:00:00:00:00:02", "02:00:00:00:00")).unwrap();
    let (attachments, problems) = Attachments::open(state.clone(), settings()).unwrap();
    assert_eq!(attachments.list().iter().map(|a| a.request.container.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(problems.len(), 3, "{problems:?}");
    let mac = &problems[2];
    assert!(mac.contains("d:eth0.json") && mac.contains("\"02:00:00:00:00\" is not a MAC address"), "{mac}");
    assert!(!state.join(".newhalf").exists());
}

#[test]
fn interfaces_that_are_gone_lose_the_attachment_but_keep_the_address() {
    let folder = tempfile::tempdir().unwrap();
    let mut attachments = open(&folder);
    for name in ["a", "b"] {
        attachments.reserve(&request(name), |_| false).unwrap();
        attachments.attach(name, "eth0", attach()).unwrap();
    }
    let kept = attachments.find("a", "eth0").unwrap().reservation.host_interface.clone();
    let detached = attachments.detach_missing(|name, index| name == kept && index == 7).unwrap();
    assert_eq!(detached.len(), 1);
    let again = open(&folder);
    assert!(again.find("a", "eth0").unwrap().attach.is_some());
    assert!(again.find("b", "eth0").unwrap().attach.is_none());
    assert_eq!(again.list().len(), 2);
}

#[test]
fn two_hundred_reservations_have_different_addresses_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut attachments = open(&folder);
    let pod_ranges = vec!["10.244.1.0/24".parse().unwrap()];
    attachments.set_settings(Settings { pod_ranges, limit: 1000, ..settings() });
    let (mut addresses, mut names) = (BTreeSet::new(), BTreeSet::new());
    for i in 0..200 {
        let reservation = attachments.reserve(&request(&format!("c{i}")), |_| false).unwrap();
        addresses.insert(reservation.addresses[0]);
        names.insert(reservation.host_interface);
    }
    assert_eq!((addresses.len(), names.len()), (200, 200));
    for i in 0..200 {
        attachments.release(&format!("c{i}"), "eth0").unwrap();
    }
    assert_eq!(fs::read_dir(folder.path().join("attachments")).unwrap().count(), 1, "only the cursors are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_disk_that_does_not_answer_holds_up_only_who_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (attachments, _) = Attachments::open(folder.path().join("attachments"), settings()).unwrap();
    let hangs = Arc::clone(&attachments.disk);
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let hanging = std::thread::spawn(move || {
        let _hang = hangs.hangs.lock().unwrap();
        held.send(()).unwrap();
        let _ = released.recv();
    });
    is_held.recv().unwrap();
    let changing = attachments.clone();
    let mut change = tokio::spawn(async move { changing.change(|k| k.reserve(&request("a"), |_| false)).await });
    let soon = Duration::from_millis(200);
    assert!(tokio::time::timeout(soon, &mut change).await.is_err(), "what is answered is on disk");
    assert!(tokio::time::timeout(soon, attachments.keeper()).await.is_err(), "one at a time");
    // No other caller waits.
    attachments.set_settings(Settings { route_mtu: 1_300, ..settings() });
    assert!(attachments.list().is_empty(), "what is not on disk is not known");
    assert_eq!(attachments.trouble(Instant::now()), None);
    let late = attachments.trouble(Instant::now() + Duration::from_secs(60)).unwrap();
    assert!(late.contains("does not answer"), "{late}");

    drop(release);
    hanging.join().unwrap();
    let given = change.await.unwrap().unwrap();
    assert_eq!(attachments.list()[0].reservation, given);
    assert_eq!(attachments.trouble(Instant::now() + Duration::from_secs(60)), None);
}

#[tokio::test]
async fn a_disk_that_writes_nothing_is_told_of_though_it_removes() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("attachments");
    let (attachments, _) = Attachments::open(state.clone(), settings()).unwrap();
    attachments.change(|k| k.reserve(&request("a"), |_| false)).await.unwrap();
    // Where the file should be is something else.
    let in_the_way = state.join("b:eth0.json");
    fs::create_dir(&in_the_way).unwrap();
    assert!(attachments.change(|k| k.reserve(&request("b"), |_| false)).await.is_err());
    let told = || attachments.trouble(Instant::now());
    assert!(told().unwrap().contains("b:eth0.json"), "{:?}", told());
    assert!(attachments.change(|k| k.release("a", "eth0")).await.unwrap().is_some());
    assert!(told().is_some(), "that something was removed says nothing of it");
    fs::remove_dir(&in_the_way).unwrap();
    attachments.change(Keeper::try_disk).await.unwrap();
    assert_eq!(told(), None);
    assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "nothing is left of the attempt beside the cursors");
}

#[tokio::test]
async fn a_disk_that_refuses_is_told_of_until_it_takes_something() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("attachments");
    let (attachments, _) = Attachments::open(state.clone(), settings()).unwrap();
    fs::remove_dir(&state).unwrap();
    assert!(attachments.change(|k| k.reserve(&request("a"), |_| false)).await.is_err());
    assert!(attachments.trouble(Instant::now()).unwrap().contains("cannot write"));
    assert!(attachments.list().is_empty());
    assert!(attachments.change(Keeper::try_disk).await.is_err());
    assert!(attachments.trouble(Instant::now()).unwrap().contains("pods cannot start"));
    fs::create_dir(&state).unwrap();
    assert!(attachments.change(|k| k.reserve(&request("a"), |_| false)).await.is_ok());
    assert_eq!(attachments.trouble(Instant::now()), None);
}
