//! The whole source on a real folder, with a real thread and inotify.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use hauberk_core::model::Change;
use hauberk_core::objects::NodeObject;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    folder: tempfile::TempDir,
    source: Arc<Directory>,
    batches: mpsc::Receiver<Batch>,
    stop: signal::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), SourceError>>,
}

fn node(name: &str) -> String {
    format!("# {name}\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n---\n")
}

impl Running {
    fn start(files: &[(&str, &str)]) -> Running {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let source = Arc::new(Directory::new(folder.path().to_owned(), "n1".into()));
        let (sender, batches) = mpsc::channel(16);
        let (stop, stopped) = signal::channel(false);
        let task = tokio::spawn(Arc::clone(&source).run(sender, stopped));
        Running { folder, source, batches, stop, task }
    }

    /// Changes up to the first one that `is_last` accepts.
    async fn until(&mut self, is_last: impl Fn(&Change) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        tokio::time::timeout(PATIENCE, async {
            while !changes.iter().any(&is_last) {
                changes.extend(self.batches.recv().await.unwrap().changes);
            }
        })
        .await
        .unwrap_or_else(|_| panic!("only {changes:?} came"));
        changes
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_is_there_is_told_then_every_change() {
    let mut running = Running::start(&[("nodes.yaml", &(node("n1") + &node("n2")))]);
    let first = running.until(|change| *change == Change::Synced).await;
    assert_eq!(first.iter().filter(|change| matches!(change, Change::Node(_))).count(), 2);
    assert!(running.source.status().synced);
    let path = running.folder.path().join("a.yaml");
    fs::write(&path, "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n").unwrap();
    running.until(|change| matches!(change, Change::Namespace(namespace) if namespace.name == "a")).await;
    let beside = running.folder.path().join("b.new");
    fs::write(&beside, "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n").unwrap();
    fs::rename(&beside, &path).unwrap();
    running.until(|change| *change == Change::NamespaceGone("a".into())).await;
    fs::remove_file(&path).unwrap();
    running.until(|change| *change == Change::NamespaceGone("b".into())).await;
    running.stop().await;
}

#[tokio::test]
async fn a_folder_that_comes_later_is_found() {
    let mut running = Running::start(&[]);
    let path = running.folder.path().to_owned();
    fs::remove_dir(&path).unwrap();
    let batch = tokio::time::timeout(PATIENCE, running.batches.recv()).await.unwrap().unwrap();
    assert_eq!(batch.events[0].reason, crate::reason::SOURCE_UNAVAILABLE);
    assert!(running.source.status().unavailable_since.is_some());
    fs::create_dir(&path).unwrap();
    fs::write(path.join("n.yaml"), node("n1")).unwrap();
    running.until(|change| *change == Change::Synced).await;
    assert!(running.source.status().unavailable_since.is_none());
    fs::write(path.join("n.yaml"), node("n1") + &node("n2")).unwrap();
    running.until(|change| matches!(change, Change::Node(node) if node.name == "n2")).await;
    running.stop().await;
}

#[tokio::test]
async fn annotations_come_back_as_a_change_and_the_file_keeps_its_mode() {
    let mut running = Running::start(&[("nodes.yaml", &(node("n1") + &node("n2")))]);
    let missing = Arc::new(Directory::new(running.folder.path().to_owned(), "n9".into()));
    assert!(matches!(missing.annotate(Annotations::new()).await, Err(SourceError::NoNode { .. })));
    running.until(|change| *change == Change::Synced).await;
    let path = running.folder.path().join("nodes.yaml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let annotations: Annotations = [("hauberk.io/keys".to_owned(), Some("K".to_owned()))].into();
    Arc::clone(&running.source).annotate(annotations.clone()).await.unwrap();
    let has_key = |node: &NodeObject| node.name == "n1" && node.keys.as_deref() == Some("K");
    running.until(|change| matches!(change, Change::Node(node) if has_key(node))).await;
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("# n1") && text.ends_with(&node("n2")), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let inode = fs::metadata(&path).unwrap().ino();
    Arc::clone(&running.source).annotate(annotations).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "nothing to change, nothing written");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_share_one_file_lose_none_of_their_annotations() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nodes.yaml");
    let names: Vec<String> = (0..8).map(|i| format!("n{i}")).collect();
    fs::write(&path, names.iter().map(|name| node(name)).collect::<String>()).unwrap();
    let writers = names.iter().map(|name| {
        let (folder, path, name) = (folder.path().to_owned(), path.clone(), name.clone());
        tokio::task::spawn_blocking(move || {
            for round in 0..10 {
                let annotations = [("hauberk.io/keys".to_owned(), Some(format!("{name}-{round}")))].into();
                write::annotations(&folder, &path, &name, &annotations).unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    for name in &names {
        assert!(text.contains(&format!("'{name}-9'")), "{name} is missing in\n{text}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the file and the lock");
}

/// Prints figures: `cargo test -p hauberk-agent --lib delay -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "prints figures"]
async fn delay_from_file_to_change() {
    let mut running = Running::start(&[("nodes.yaml", &node("n1"))]);
    running.until(|change| *change == Change::Synced).await;
    for i in 0..5 {
        let begin = Instant::now();
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a{i}}}\n");
        fs::write(running.folder.path().join("a.yaml"), text).unwrap();
        running
            .until(|change| matches!(change, Change::Namespace(namespace) if namespace.name == format!("a{i}")))
            .await;
        println!("{:?}", begin.elapsed());
    }
    running.stop().await;
}

/// Prints figures: `cargo test -p hauberk-agent --lib twenty -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn twenty_thousand_pods() {
    let pod = |i: usize| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{i}\n  namespace: ns-{}\n  uid: 0000-{i}\n  labels:\n    app: web\n    \
             hauberk.io/encryption: enabled\n  creationTimestamp: '2026-01-01T00:00:00Z'\nspec:\n  nodeName: node-{}\n  containers:\n  \
             - name: main\n    image: example.com/app:1\n    ports:\n    - containerPort: 8080\n    env:\n    - name: A\n      value: b\n\
             status:\n  phase: Running\n  podIP: 10.{}.{}.{}\n  podIPs:\n  - ip: 10.{}.{}.{}\n",
            i % 50,
            i % 1000,
            i >> 16,
            (i >> 8) & 255,
            i & 255,
            i >> 16,
            (i >> 8) & 255,
            i & 255
        )
    };
    let later = SystemTime::now() + Duration::from_secs(3600);
    let scan = |path: &Path| {
        let mut folder = Folder::new(path.to_owned(), "n1");
        let begin = Instant::now();
        let scan = folder.scan(&Scope::All, later);
        assert_eq!(scan.batch.changes.len(), 20_002);
        let first = begin.elapsed();
        let begin = Instant::now();
        assert!(folder.scan(&Scope::All, later).batch.is_empty());
        (folder, first, begin.elapsed())
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("node.yaml"), node("n1")).unwrap();
    let one = folder.path().join("pods.yaml");
    let text: String = (0..20_000).map(|i| pod(i) + "---\n").collect();
    fs::write(&one, &text).unwrap();
    let (mut state, first, idle) = scan(folder.path());
    fs::write(&one, text.replacen("phase: Running", "phase: Failed", 1)).unwrap();
    let begin = Instant::now();
    let touched = Scope::Files([("pods.yaml".to_owned(), folder::Touch::Closed)].into());
    assert_eq!(state.scan(&touched, later).batch.changes.len(), 1);
    println!(
        "one file of {} MB: {first:?}, idle rescan {idle:?}, one pod changed {:?}",
        text.len() >> 20,
        begin.elapsed()
    );
    fs::remove_file(&one).unwrap();
    for i in 0..20_000 {
        fs::write(folder.path().join(format!("pod-{i}.yaml")), pod(i)).unwrap();
    }
    let (_, first, idle) = scan(folder.path());
    println!("20,000 files: {first:?}, idle rescan {idle:?}");
}
