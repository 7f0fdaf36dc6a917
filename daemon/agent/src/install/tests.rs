use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
    {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

struct Host {
    folder: tempfile::TempDir,
    cni: Cni,
}

impl Host {
    fn new(install: CniInstall) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("net.d")).unwrap();
        let cni =
            Cni { install, binary_directory: path("bin"), configuration_directory: path("net.d"), ..Cni::default() };
        Host { folder, cni }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cni.configuration_directory.join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// [`place`] with a plugin of the test's own.
    fn place(&self, ready: bool) -> Result<Placed, InstallError> {
        let own = self.folder.path().join(PLUGIN);
        if !own.exists() {
            fs::write(&own, "plugin 1").unwrap();
        }
        files::install_plugin(&own, &self.cni.binary_directory.join(PLUGIN))?;
        place_list(&self.cni, Path::new("/run/hauberk/agent.sock"), ready)
    }

    fn list(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path("05-hauberk.conflist")).unwrap()).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.cni.configuration_directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn nothing_is_written_before_the_node_is_ready_and_nothing_twice() {
    let host = Host::new(CniInstall::Primary);
    assert_eq!(host.place(false).unwrap(), Placed::Absent);
    assert!(host.files().is_empty());
    assert_eq!(host.place(true).unwrap(), Placed::Written);
    assert_eq!(host.place(true).unwrap(), Placed::Already);
    // After a reboot the file exists before the agent is ready, and the plugin makes pods wait.
    assert_eq!(host.place(false).unwrap(), Placed::Already);
    let list = host.list();
    assert_eq!((&list["name"], &list["plugins"][0]["type"]), (&"hauberk".into(), &PLUGIN.into()));
    assert_eq!(list["plugins"][0]["chained"], serde_json::Value::Null);
    assert_eq!(fs::metadata(host.path("05-hauberk.conflist")).unwrap().permissions().mode() & 0o777, 0o644);
    // Another program rewrote it.
    host.put("05-hauberk.conflist", "{}");
    assert_eq!(host.place(true).unwrap(), Placed::Written);
    assert_eq!(host.list(), list);
}

#[test]
fn the_plugin_is_copied_when_it_differs() {
    let host = Host::new(CniInstall::Primary);
    host.place(true).unwrap();
    let binary = host.cni.binary_directory.join(PLUGIN);
    assert_eq!(fs::read(&binary).unwrap(), b"plugin 1");
    assert_eq!(fs::metadata(&binary).unwrap().permissions().mode() & 0o777, 0o755);
    fs::write(host.folder.path().join(PLUGIN), "plugin 2").unwrap();
    host.place(true).unwrap();
    assert_eq!(fs::read(&binary).unwrap(), b"plugin 2");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o600)).unwrap();
    host.place(true).unwrap();
    assert_eq!(fs::metadata(&binary).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn chained_the_others_list_is_kept_followed_and_never_touched() {
    let host = Host::new(CniInstall::Chained);
    let error = host.place(true).unwrap_err().to_string();
    assert!(error.contains("no other CNI plugin"), "{error}");
    host.put("10-flannel.conflist", FLANNEL);
    host.put("20-other.conf", r#"{"name":"other","type":"bridge"}"#);
    assert_eq!(host.place(true).unwrap(), Placed::Written);
    let list = host.list();
    assert_eq!((&list["name"], &list["cniVersion"]), (&"cbr0".into(), &"0.3.1".into()));
    let kinds: Vec<&str> = list["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["flannel", "portmap", PLUGIN]);
    assert_eq!(list["plugins"][2]["chained"], true);
    assert_eq!(list["plugins"][0]["delegate"]["hairpinMode"], true);

    // An upgrade of the other plugin.
    host.put("10-flannel.conflist", &FLANNEL.replace("portmap", "bandwidth"));
    assert_eq!(host.place(true).unwrap(), Placed::Written);
    assert_eq!(host.list()["plugins"][1]["type"], "bandwidth");

    // The other plugin is removed: the next one counts. Without any, the list is removed too.
    fs::remove_file(host.path("10-flannel.conflist")).unwrap();
    assert_eq!(host.place(true).unwrap(), Placed::Written);
    assert_eq!((&host.list()["name"], host.list()["plugins"].as_array().unwrap().len()), (&"other".into(), 2));
    assert_eq!(host.list()["plugins"][0]["name"], "other", "a plugin that was alone keeps its fields");
    fs::remove_file(host.path("20-other.conf")).unwrap();
    assert!(host.place(true).is_err());
    assert!(host.files().is_empty());
}

#[test]
fn unusable_files_of_others_are_passed_over_and_an_earlier_usable_one_is_refused() {
    let host = Host::new(CniInstall::Chained);
    for (name, text) in [
        ("00-torn.conflist", "{"),
        ("01-nameless.conf", r#"{"type":"bridge"}"#),
        ("02-empty.conflist", r#"{"name":"x","plugins":[]}"#),
        ("03-alone.conflist", r#"{"name":"x","plugins":[{"type":"hauberk-cni"}]}"#),
        ("04-readme.txt", "nothing"),
        ("10-flannel.conflist", FLANNEL),
    ] {
        host.put(name, text);
    }
    assert_eq!(host.place(true).unwrap(), Placed::Written);
    assert_eq!(host.list()["name"], "cbr0");
    host.put("00-multus.conf", r#"{"name":"multus","type":"multus"}"#);
    let error = host.place(true).unwrap_err().to_string();
    assert!(error.contains("00-multus.conf before 05-hauberk.conflist"), "{error}");
}

#[test]
fn a_list_that_names_the_plugin_already_has_it_once() {
    let host = Host::new(CniInstall::Chained);
    host.put("10-flannel.conflist", &FLANNEL.replace("portmap", PLUGIN));
    host.place(true).unwrap();
    assert_eq!(host.list()["plugins"].as_array().unwrap().len(), 2);
}

#[test]
fn lists_of_old_versions_are_raised_or_refused_and_never_written_as_they_are() {
    let host = Host::new(CniInstall::Chained);
    for old in [r#""cniVersion":"0.2.0","#, r#""cniVersion":"0.3.0","#, ""] {
        host.put("10-flannel.conflist", &FLANNEL.replace(r#""cniVersion":"0.3.1","#, old));
        host.place(true).unwrap();
        assert_eq!((&host.list()["name"], &host.list()["cniVersion"]), (&"cbr0".into(), &"0.3.1".into()), "{old}");
        host.put("10-flannel.conflist", &format!(r#"{{{old}"name":"alone","type":"bridge"}}"#));
        host.place(true).unwrap();
        assert_eq!((&host.list()["name"], &host.list()["cniVersion"]), (&"alone".into(), &"0.3.1".into()), "{old}");

        let host = Host::new(CniInstall::Chained);
        host.put("10-own.conf", &format!(r#"{{{old}"name":"own","type":"own-plugin"}}"#));
        // A list that could be wrapped is not the one that the runtime would have taken.
        host.put("20-flannel.conflist", FLANNEL);
        let error = host.place(true).unwrap_err().to_string();
        assert!(error.contains("10-own.conf") && error.contains("own-plugin"), "{error}");
        assert_eq!(host.files(), ["10-own.conf", "20-flannel.conflist"]);
    }
    // A list that was wrapped before stays, and pods stay protected with it.
    let before = host.list();
    host.put("10-flannel.conflist", &FLANNEL.replace("0.3.1", "9.0.0"));
    assert!(host.place(true).unwrap_err().to_string().contains("9.0.0"));
    assert_eq!(host.list(), before);
}

#[test]
fn multus_is_never_wrapped_and_may_come_first_once_it_leads_to_the_list() {
    let own = "05-hauberk.conflist";
    for kind in ["multus", "multus-shim"] {
        let host = Host::new(CniInstall::Chained);
        let multus = |field: &str, value: &str| format!(r#"{{"name":"m","type":"{kind}","{field}":{value}}}"#);
        host.put("00-multus.conf", &multus("delegates", &format!("[{FLANNEL}]")));
        let error = host.place(true).unwrap_err().to_string();
        assert!(error.contains("00-multus.conf: it delegates"), "{error}");
        assert_eq!(host.files(), ["00-multus.conf"]);

        // Multus takes the first list beside its own, so hauberk's must exist before Multus can
        // lead to it.
        host.put("10-flannel.conflist", FLANNEL);
        let error = host.place(true).unwrap_err().to_string();
        assert!(error.contains("00-multus.conf before 05-hauberk.conflist"), "{error}");
        let written = fs::read_to_string(host.path(own)).unwrap();
        assert_eq!(host.list()["name"], "cbr0");
        for leading in [
            multus("delegates", &format!("[{written}]")),
            multus("clusterNetwork", r#""/host/etc/cni/net.d/05-hauberk.conflist""#),
            multus("clusterNetwork", r#""cbr0""#),
        ] {
            host.put("00-multus.conf", &leading);
            assert_eq!(host.place(true).unwrap(), Placed::Already, "{leading}");
        }
        host.put("00-multus.conf", &multus("clusterNetwork", r#""other""#));
        assert!(host.place(true).is_err());
        assert_eq!(fs::read_to_string(host.path(own)).unwrap(), written);
    }
}

#[test]
fn multus_and_the_agent_do_not_wrap_each_other() {
    let mut host = Host::new(CniInstall::Chained);
    host.cni.configuration_name = "00-hauberk.conflist".to_owned();
    host.put("10-flannel.conflist", FLANNEL);
    let mut sizes = std::collections::BTreeSet::new();
    for _ in 0..5 {
        assert!(host.place(true).is_ok());
        let first = fs::read_to_string(host.path("00-hauberk.conflist")).unwrap();
        sizes.insert(first.len());
        // Multus, once as itself and once in a list, around the first list that it finds.
        let multus = format!(r#"{{"cniVersion":"0.3.1","name":"m","type":"multus","delegates":[{first}]}}"#);
        host.put("00-multus.conf", &multus);
        host.put("01-multus.conflist", &format!(r#"{{"cniVersion":"0.3.1","name":"m","plugins":[{multus}]}}"#));
    }
    assert_eq!(sizes.len(), 1, "{sizes:?}");
}

#[test]
fn a_copy_of_the_list_is_not_another_plugins() {
    let host = Host::new(CniInstall::Chained);
    host.put("10-flannel.conflist", FLANNEL);
    host.place(true).unwrap();
    fs::copy(host.path("05-hauberk.conflist"), host.path("06-copy.conflist")).unwrap();
    host.put("10-flannel.conflist", &FLANNEL.replace("portmap", "bandwidth"));
    assert_eq!(host.place(true).unwrap(), Placed::Written);
    assert_eq!(host.list()["plugins"][1]["type"], "bandwidth");
    fs::remove_file(host.path("10-flannel.conflist")).unwrap();
    let error = host.place(true).unwrap_err().to_string();
    assert!(error.contains("06-copy.conflist: it is a copy"), "{error}");
    assert_eq!(host.files(), ["06-copy.conflist"]);
}

#[test]
fn the_list_is_no_more_readable_than_the_one_it_was_made_from() {
    let host = Host::new(CniInstall::Chained);
    host.put("10-flannel.conflist", FLANNEL);
    let readable = |name: &str| fs::metadata(host.path(name)).unwrap().permissions().mode() & 0o777;
    for (mode, expected) in [(0o600, 0o600), (0o640, 0o640), (0o666, 0o644), (0o644, 0o644), (0o400, 0o400)] {
        fs::set_permissions(host.path("10-flannel.conflist"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(host.place(true).unwrap(), if mode == 0o644 { Placed::Already } else { Placed::Written });
        assert_eq!(host.place(true).unwrap(), Placed::Already);
        assert_eq!(readable("05-hauberk.conflist"), expected);
        assert_eq!(readable("10-flannel.conflist"), mode);
    }
}

#[test]
fn uninstall_removes_what_is_ours_and_nothing_else() {
    let host = Host::new(CniInstall::Chained);
    host.put("10-flannel.conflist", FLANNEL);
    host.put(".hauberk-abc", "cut short");
    host.place(true).unwrap();
    fs::write(host.cni.binary_directory.join("bridge"), "another plugin").unwrap();
    for _ in 0..2 {
        uninstall(&host.cni).unwrap();
        assert_eq!(host.files(), ["10-flannel.conflist"]);
        assert_eq!(fs::read_to_string(host.path("10-flannel.conflist")).unwrap(), FLANNEL);
        assert!(!host.cni.binary_directory.join(PLUGIN).exists());
        assert!(host.cni.binary_directory.join("bridge").exists());
    }
    // Another program's file under hauberk's name stays.
    host.put("05-hauberk.conflist", FLANNEL);
    uninstall(&host.cni).unwrap();
    assert!(host.path("05-hauberk.conflist").exists());
}

#[test]
fn without_an_order_to_install_nothing_is_removed() {
    let host = Host::new(CniInstall::Primary);
    host.place(true).unwrap();
    uninstall(&Cni { install: CniInstall::None, ..host.cni.clone() }).unwrap();
    assert!(host.path("05-hauberk.conflist").exists());
}

#[tokio::test]
async fn what_keeps_the_list_away_stands_in_the_status_until_it_is_mended() {
    let host = Host::new(CniInstall::Chained);
    let agent = SharedState::new(crate::testing::agent("n1"));
    let (_, adopted) = watch::channel(true);
    let config = Config { cni: host.cni.clone(), ..Config::default() };
    let installer = Installer::new(&config, agent.clone(), adopted, watch::Sender::new(false));
    host.put("10-old.conflist", r#"{"name":"x","cniVersion":"0.2.0","plugins":[{"type":"homegrown"}]}"#);
    let refused = host.place(true).unwrap_err();
    installer.tell(Some(&refused));
    let told = agent.read().cni.clone().unwrap();
    assert_eq!((told.severity, told.object.as_str()), (Severity::Critical, "cni"));
    assert!(told.message.contains("homegrown"), "{}", told.message);
    host.put("10-old.conflist", FLANNEL);
    installer.tell(host.place(true).err().as_ref());
    assert!(agent.read().cni.is_none());
}
