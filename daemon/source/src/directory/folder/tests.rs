use std::os::unix::fs::PermissionsExt;

use hauberk_core::objects::{NamespaceObject, PodObject};

use super::*;

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";

struct Test {
    folder: tempfile::TempDir,
    state: Folder,
    now: SystemTime,
}

impl Test {
    /// An empty folder as node n1 sees it an hour from now, when every file is old.
    fn new() -> Test {
        let folder = tempfile::tempdir().unwrap();
        let state = Folder::new(folder.path().to_owned(), "n1");
        Test { folder, state, now: SystemTime::now() + Duration::from_secs(3600) }
    }

    /// A folder with this node's object, read and synced.
    fn synced(files: &[(&str, &str)]) -> Test {
        let mut test = Test::new();
        test.write("node.yaml", NODE);
        for (name, text) in files {
            test.write(name, text);
        }
        assert!(test.scan().changes.contains(&Change::Synced));
        test
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    /// Scans everything, two seconds after the last time.
    fn scan(&mut self) -> Batch {
        self.now += Duration::from_secs(2);
        self.state.scan(&Scope::All, self.now).batch
    }

    fn labels(batch: &Batch) -> Vec<(String, Option<String>)> {
        let label = |change: &Change| match change {
            Change::Namespace(NamespaceObject { name, encryption, .. }) => Some((name.clone(), encryption.clone())),
            Change::Pod(PodObject { name, encryption, .. }) => Some((name.clone(), encryption.clone())),
            Change::NamespaceGone(name) => Some((format!("-{name}"), None)),
            Change::PodGone(name) => Some((format!("-{}", name.name), None)),
            _ => None,
        };
        batch.changes.iter().filter_map(label).collect()
    }
}

fn namespace(name: &str, label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{hauberk.io/encryption: {label}}}\n---\n"
    )
}

fn told(name: &str, label: &str) -> (String, Option<String>) {
    (name.to_owned(), Some(label.to_owned()))
}

#[test]
fn an_empty_folder_is_not_synced_until_our_node_is_in_it() {
    let mut test = Test::new();
    let batch = test.scan();
    assert_eq!(batch.changes, []);
    assert_eq!(batch.events[0].reason, reason::SOURCE_UNAVAILABLE);
    test.write("other.yaml", &NODE.replace("n1", "n2"));
    assert_eq!(test.scan().changes, [], "whose it is, is not known");
    assert!(!test.state.is_synced());
    test.write("node.yaml", NODE);
    let batch = test.scan();
    assert_eq!(batch.changes.len(), 3);
    assert_eq!(batch.changes.last(), Some(&Change::Synced));
    assert_eq!(batch.events[0].reason, reason::SOURCE_AVAILABLE);
    assert_eq!(test.scan(), Batch::default());
}

#[test]
fn a_folder_that_is_not_there_is_told_once_and_read_when_it_comes() {
    let mut test = Test::new();
    let path = test.folder.path().join("later");
    test.state = Folder::new(path.clone(), "n1");
    assert_eq!(test.scan().events.len(), 1);
    assert_eq!(test.scan(), Batch::default());
    assert!(test.state.unavailable().is_some());
    fs::create_dir(&path).unwrap();
    fs::write(path.join("n.yaml"), NODE).unwrap();
    assert!(test.scan().changes.contains(&Change::Synced));
    assert!(test.state.unavailable().is_none());
    fs::rename(&path, test.folder.path().join("gone")).unwrap();
    let batch = test.scan();
    assert_eq!((batch.changes.len(), batch.events.len()), (0, 1), "nothing is forgotten: {batch:?}");
    assert!(batch.events[0].message.contains("existing tunnels are kept"));
}

#[test]
fn a_folder_that_is_emptied_at_once_forgets_nothing() {
    let mut test = Test::synced(&[("a.yaml", &namespace("a", "enabled"))]);
    test.remove("a.yaml");
    test.remove("node.yaml");
    for _ in 0..3 {
        assert_eq!(test.scan().changes, []);
    }
    assert!(test.state.unavailable().is_some());
    test.write("node.yaml", NODE);
    let batch = test.scan();
    assert_eq!(Test::labels(&batch), [("-a".to_owned(), None)], "our node is back, and the other file is not");
}

#[test]
fn a_file_that_loses_our_node_keeps_all_it_said_until_the_node_is_back() {
    let mut test = Test::new();
    test.write("all.yaml", &format!("{}{NODE}", namespace("a", "enabled")));
    test.scan();
    test.write("all.yaml", "");
    assert_eq!(test.scan().changes, []);
    assert!(test.state.unavailable().is_some());
    test.write("moved.yaml", NODE);
    let batch = test.scan();
    assert_eq!(Test::labels(&batch), [("-a".to_owned(), None)]);
    assert!(test.state.unavailable().is_none());
}

#[test]
fn nothing_of_another_clusters_folder_is_taken() {
    let ours = namespace("a", "enabled");
    let theirs = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    let touch = |names: &[&str]| Scope::Files(names.iter().map(|name| ((*name).to_owned(), Touch::Closed)).collect());
    let mut test = Test::synced(&[("a.yaml", &ours)]);
    // The order in which the two files are touched does not matter, nor whether both are.
    test.write("node.yaml", &NODE.replace("n1", "x1"));
    test.write("a.yaml", theirs);
    assert_eq!(test.state.scan(&touch(&["a.yaml"]), test.now).batch.changes, []);
    assert_eq!(test.state.scan(&touch(&["node.yaml"]), test.now).batch.changes, []);
    assert_eq!(test.scan().changes, []);
    assert!(test.state.unavailable().is_some());
    test.write("b.yaml", &namespace("b", "enabled"));
    assert_eq!(test.scan().changes, []);
    // The cluster's own files are back, one after the other.
    test.write("a.yaml", &ours);
    test.remove("b.yaml");
    assert_eq!(test.scan().changes, []);
    test.write("node.yaml", NODE);
    assert_eq!(test.scan().changes, [], "all is as it was");
    assert!(test.state.unavailable().is_none());
}

#[test]
fn what_is_read_while_our_nodes_file_is_being_written_waits_for_it() {
    let mut test = Test::synced(&[("a.yaml", &namespace("a", "enabled"))]);
    test.now = SystemTime::now();
    test.write("node.yaml", "");
    test.write("a.yaml", &namespace("a", "permissive"));
    let closed = Scope::Files([("a.yaml".to_owned(), Touch::Closed)].into());
    let scan = test.state.scan(&closed, test.now);
    assert_eq!((scan.batch.changes, scan.again_after), (vec![], Some(QUIET)));
    test.write("node.yaml", NODE);
    assert_eq!(Test::labels(&test.scan()), [told("a", "permissive")]);
}

#[test]
fn a_removed_file_is_forgotten_after_a_while_and_a_replaced_one_never() {
    let mut test = Test::synced(&[("a.yaml", &namespace("a", "enabled")), ("b.yaml", &namespace("b", "enabled"))]);
    test.remove("a.yaml");
    test.remove("b.yaml");
    let touched = Scope::Files([("a.yaml".to_owned(), Touch::Unknown), ("b.yaml".to_owned(), Touch::Unknown)].into());
    let scan = test.state.scan(&touched, test.now);
    assert_eq!((scan.batch.changes.len(), scan.again_after), (0, Some(GONE)));
    test.write("b.yaml", &namespace("b", "permissive"));
    let batch = test.scan();
    assert_eq!(Test::labels(&batch), [("-a".to_owned(), None), told("b", "permissive")]);
}

#[test]
fn a_malformed_document_rejects_only_itself_and_keeps_its_last_good_version() {
    let good = format!("{}{}", namespace("a", "enabled"), namespace("b", "enabled"));
    let mut test = Test::synced(&[("f.yaml", &good)]);
    test.write(
        "f.yaml",
        &format!("{}apiVersion: v1\nkind: Namespace\nmetadata: {{name: b, labels: [\n", namespace("a", "permissive")),
    );
    let batch = test.scan();
    assert_eq!(Test::labels(&batch), [told("a", "permissive")], "b is not forgotten");
    let event = &batch.events[0];
    assert_eq!(event.reason, reason::MANIFEST_REJECTED);
    assert!(event.message.contains("f.yaml: document 2, line 10"), "{}", event.message);
    assert_eq!(test.state.rejected(), 1);
    assert_eq!(test.scan(), Batch::default(), "told once");
    test.write("f.yaml", &namespace("a", "permissive"));
    assert_eq!(Test::labels(&test.scan()), [("-b".to_owned(), None)]);
    assert_eq!(test.state.rejected(), 0);
}

#[test]
fn a_rejection_that_names_its_object_keeps_that_one_alone() {
    let good = format!("{}{}", namespace("a", "enabled"), namespace("b", "enabled"));
    let mut test = Test::synced(&[("f.yaml", &good)]);
    test.write("f.yaml", &namespace("b", "true"));
    let batch = test.scan();
    assert_eq!(Test::labels(&batch), [("-a".to_owned(), None)]);
    assert_eq!(batch.events[0].objects, ["Namespace/b"]);
    assert!(batch.events[0].message.contains("last good version of Namespace/b"), "{}", batch.events[0].message);
}

#[test]
fn json_and_lists_are_read_and_a_cut_json_file_keeps_what_it_said() {
    let json = |label: &str| {
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\
            \"metadata\":{{\"name\":\"a\",\"labels\":{{\"hauberk.io/encryption\":\"{label}\"}}}}}}]}}"
        )
    };
    let mut test =
        Test::synced(&[("f.json", &json("enabled")), ("README.md", "no manifest"), (".hidden.yaml", "a: [")]);
    let text = json("permissive");
    test.write("f.json", &text[..text.len() - 3]);
    let batch = test.scan();
    assert_eq!((batch.changes.len(), batch.events.len()), (0, 1));
    test.write("f.json", &text);
    assert_eq!(Test::labels(&test.scan()), [told("a", "permissive")]);
}

#[test]
fn of_an_object_in_two_files_the_first_is_told_with_the_strictest_label() {
    let mut test = Test::synced(&[("b.yaml", &namespace("a", "disabled"))]);
    test.write("c.yaml", &namespace("a", "enabled"));
    let batch = test.scan();
    assert_eq!(Test::labels(&batch), [told("a", "enabled")]);
    let event = &batch.events[0];
    assert_eq!(event.reason, reason::DUPLICATE_OBJECT);
    assert!(event.message.contains("b.yaml") && event.message.contains("c.yaml"), "{}", event.message);
    assert_eq!(test.scan(), Batch::default());
    test.remove("c.yaml");
    test.scan();
    assert_eq!(Test::labels(&test.scan()), [told("a", "disabled")]);
}

#[test]
fn a_file_that_is_being_written_is_read_when_it_is_closed_or_quiet() {
    let mut test = Test::synced(&[("f.yaml", &namespace("a", "enabled"))]);
    // The clock says that the file has just been written.
    test.now = SystemTime::now();
    let touch = |touch| Scope::Files([("f.yaml".to_owned(), touch)].into());
    test.write("f.yaml", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n");
    let scan = test.state.scan(&touch(Touch::Open), test.now);
    assert_eq!((scan.batch, scan.again_after), (Batch::default(), Some(OPEN)));
    assert_eq!(test.state.scan(&Scope::All, test.now + QUIET * 2).batch, Batch::default(), "its writer was seen");
    test.write("f.yaml", &namespace("a", "permissive"));
    assert_eq!(Test::labels(&test.state.scan(&touch(Touch::Closed), test.now).batch), [told("a", "permissive")]);
    test.write("f.yaml", &namespace("a", "enabled"));
    test.now = SystemTime::now();
    let scan = test.state.scan(&Scope::All, test.now);
    assert_eq!((scan.batch, scan.again_after), (Batch::default(), Some(QUIET)));
    assert_eq!(Test::labels(&test.state.scan(&Scope::All, test.now + QUIET).batch), [told("a", "enabled")]);
}

#[test]
fn only_changed_objects_of_a_large_file_are_told() {
    let many = |label: &str| {
        let pods: String = (0..500)
            .map(|i| {
                let label = if i == 250 { label } else { "enabled" };
                format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, labels: {{hauberk.io/encryption: {label}}}}}\n")
            })
            .collect();
        pods
    };
    let mut test = Test::synced(&[("pods.yaml", &many("enabled"))]);
    assert_eq!(test.state.objects(), 501);
    test.write("pods.yaml", &many("permissive"));
    assert_eq!(Test::labels(&test.scan()), [told("p250", "permissive")]);
}

#[test]
fn a_file_that_cannot_be_read_keeps_what_it_said() {
    let mut test = Test::synced(&[("f.yaml", &namespace("a", "enabled"))]);
    fs::write(test.folder.path().join("f.yaml"), b"\xff\xfe\x00").unwrap();
    let batch = test.scan();
    assert_eq!((batch.changes.len(), batch.events.len(), test.state.rejected()), (0, 1, 1));
    fs::remove_file(test.folder.path().join("f.yaml")).unwrap();
    fs::create_dir(test.folder.path().join("f.yaml")).unwrap();
    fs::set_permissions(test.folder.path().join("f.yaml"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(test.scan().changes, []);
    test.write(
        "big.yaml",
        &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: big, x: {}}}\n", "x".repeat(MAX_OBJECT)),
    );
    assert!(test.scan().events[0].message.contains("more than"));
}

#[test]
fn events_are_bounded() {
    let mut test = Test::synced(&[]);
    test.write("f.yaml", &"---\nkind: [\n".repeat(1000));
    let batch = test.scan();
    assert_eq!(batch.events.len(), MAX_EVENTS + 1);
    assert!(batch.events[MAX_EVENTS].message.starts_with("900 more"));
    assert_eq!(test.state.rejected(), 1000);
}
