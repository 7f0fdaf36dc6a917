//! The cluster's certificate authority, the API server's certificate, and the key that signs
//! service accounts' tokens.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use hauberk_netns::netns::feed;

use crate::tools;

/// Paths of the PEM files.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The API server's certificate.
    pub server: PathBuf,
    /// The API server's private key.
    pub server_key: PathBuf,
    /// Private key that signs service accounts' tokens.
    pub account_key: PathBuf,
    /// Public key that verifies them.
    pub account_public: PathBuf,
}

impl Certificates {
    /// Makes the files in a folder, for an API server at these addresses.
    ///
    /// # Errors
    /// `openssl` is missing or fails.
    pub fn create(directory: &Path, addresses: &[IpAddr]) -> Result<Certificates> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let file = |name: &str| directory.join(name);
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(|name| format!("DNS:{name}"));
        let alternatives: Vec<String> = addresses.iter().map(|address| format!("IP:{address}")).chain(names).collect();
        let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(
            directory,
            &format!(
                "req -x509 {new_key} -keyout authority.key -out authority.crt -days 30 -subj /CN=hauberk-test-authority"
            ),
        )?;
        openssl(
            directory,
            &format!(
                "req -x509 {new_key} -keyout server.key -out server.crt -days 30 -subj /CN=kube-apiserver \
                 -CA authority.crt -CAkey authority.key -addext basicConstraints=critical,CA:FALSE \
                 -addext subjectAltName={}",
                alternatives.join(",")
            ),
        )?;
        openssl(directory, "ecparam -name prime256v1 -genkey -noout -out account.key")?;
        openssl(directory, "ec -in account.key -pubout -out account.pub")?;
        Ok(Certificates {
            authority: file("authority.crt"),
            server: file("server.crt"),
            server_key: file("server.key"),
            account_key: file("account.key"),
            account_public: file("account.pub"),
        })
    }
}

/// Runs `openssl` in a folder; no argument contains a space.
fn openssl(directory: &Path, arguments: &str) -> Result<()> {
    let mut command = Command::new(tools::installed("openssl", "openssl")?);
    command.args(arguments.split_whitespace()).current_dir(directory);
    feed(command, "").with_context(|| format!("openssl {arguments}"))?;
    Ok(())
}
