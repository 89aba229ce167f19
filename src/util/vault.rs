//! Secrets in boxes, all under one master key: XChaCha20-Poly1305, a fresh nonce for every box. A box's name is bound to it
//! as associated data, so boxes that were swapped do not open.
//!
//! Pure: where boxes are kept is `store`'s, where the master key comes from is `config`'s.

use std::{collections::BTreeMap, fmt};

use argon2::{Argon2, Block};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};

use super::secret::{ExposeSecret, SecretString};

/// One secret, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub nonce: Vec<u8>,
    pub text: Vec<u8>,
    pub created_us: i64,
    /// When its value was last set; a new master key changes no value.
    pub updated_us: i64,
}

/// All boxes, and the salt that makes a key of a passphrase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vault {
    pub salt: Vec<u8>,
    pub boxes: BTreeMap<String, Sealed>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error("there is no secret `{0}`; `assayd secrets set {0}` makes it")]
    Missing(String),
    #[error("the master key is not the one that the stored secrets are sealed with")]
    WrongKey,
    #[error("the secret `{0}` was altered in the store, so it is not used; `assayd secrets set {0}` makes it anew")]
    Altered(String),
    #[error("a master key is 32 bytes in hex or base64 (`assayd secrets keygen` prints one), or a text of at least {SHORTEST} characters")]
    Weak,
    #[error("the secret cannot be sealed")]
    Sealing,
}

/// Of a passphrase, in bytes.
const SHORTEST: usize = 16;

/// What a box is bound to, before its name.
const PURPOSE: &[u8] = b"assayd secret v1\0";

/// What boxes open with.
pub struct Key(XChaCha20Poly1305);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([REDACTED])")
    }
}

impl Key {
    fn new(master: &SecretString, salt: &[u8]) -> Result<Self, VaultError> {
        let text = master.expose_secret().trim();
        let bytes = match exact(text) {
            Some(bytes) => bytes,
            None if text.len() < SHORTEST => return Err(VaultError::Weak),
            None => stretched(text, salt).ok_or(VaultError::Weak)?,
        };
        Ok(Self(XChaCha20Poly1305::new(&bytes.into())))
    }

    fn seal(&self, name: &str, value: &str) -> Result<(Vec<u8>, Vec<u8>), VaultError> {
        let nonce: [u8; 24] = rand::random();
        let bound = [PURPOSE, name.as_bytes()].concat();
        let text = self.0.encrypt(&XNonce::from(nonce), Payload { msg: value.as_bytes(), aad: &bound }).map_err(|_| VaultError::Sealing)?;
        Ok((nonce.to_vec(), text))
    }

    fn open(&self, name: &str, sealed: &Sealed) -> Option<SecretString> {
        let nonce = <[u8; 24]>::try_from(sealed.nonce.as_slice()).ok()?;
        let bound = [PURPOSE, name.as_bytes()].concat();
        let bytes = self.0.decrypt(&XNonce::from(nonce), Payload { msg: &sealed.text, aad: &bound }).ok()?;
        String::from_utf8(bytes).ok().map(SecretString::from)
    }
}

/// A master key that is one by its form.
fn exact(text: &str) -> Option<[u8; 32]> {
    if text.len() == 64 {
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        return bytes.try_into().ok();
    }
    STANDARD.decode(text).or_else(|_| URL_SAFE_NO_PAD.decode(text.trim_end_matches('='))).ok()?.try_into().ok()
}

/// A passphrase made slow to guess: Argon2id with its recommended 19 MiB and 2 passes.
fn stretched(text: &str, salt: &[u8]) -> Option<[u8; 32]> {
    let argon = Argon2::default();
    let mut memory = vec![Block::default(); argon.params().block_count()];
    let mut key = [0; 32];
    argon.hash_password_into_with_memory(text.as_bytes(), salt, &mut key, &mut memory).ok()?;
    Some(key)
}

/// A master key to start with.
#[must_use]
pub fn keygen() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Vault {
    /// The key of these boxes.
    ///
    /// # Errors
    /// `Weak`.
    pub fn key(&self, master: &SecretString) -> Result<Key, VaultError> {
        Key::new(master, &self.salt)
    }

    /// The value of a secret.
    ///
    /// # Errors
    /// `Missing`; `WrongKey` where the key opens none of the boxes, `Altered` where it opens others.
    pub fn get(&self, key: &Key, name: &str) -> Result<SecretString, VaultError> {
        let sealed = self.boxes.get(name).ok_or_else(|| VaultError::Missing(name.to_owned()))?;
        key.open(name, sealed).ok_or_else(|| self.check(key).err().unwrap_or_else(|| VaultError::Altered(name.to_owned())))
    }

    /// Seals a value; one of the same name is replaced.
    ///
    /// # Errors
    /// `WrongKey`: boxes under two keys would be a trap. `Weak`.
    pub fn set(&mut self, master: &SecretString, name: &str, value: &SecretString, now_us: i64) -> Result<(), VaultError> {
        if self.boxes.is_empty() {
            self.salt = new_salt();
        }
        let key = self.key(master)?;
        self.check(&key)?;
        let (nonce, text) = key.seal(name, value.expose_secret())?;
        let created_us = self.boxes.get(name).map_or(now_us, |known| known.created_us);
        self.boxes.insert(name.to_owned(), Sealed { nonce, text, created_us, updated_us: now_us });
        Ok(())
    }

    /// # Errors
    /// `Missing`.
    pub fn remove(&mut self, name: &str) -> Result<(), VaultError> {
        self.boxes.remove(name).map(drop).ok_or_else(|| VaultError::Missing(name.to_owned()))
    }

    /// Seals everything anew under another master key; returns how many.
    ///
    /// # Errors
    /// `WrongKey`, `Altered`, `Weak`; what was changed by then is not to be kept.
    pub fn rotate(&mut self, old: &SecretString, new: &SecretString) -> Result<usize, VaultError> {
        let old = self.key(old)?;
        let values: Vec<(String, SecretString)> = self.boxes.keys().map(|name| Ok((name.clone(), self.get(&old, name)?))).collect::<Result<_, VaultError>>()?;
        self.salt = new_salt();
        let new = self.key(new)?;
        for (name, value) in &values {
            let (nonce, text) = new.seal(name, value.expose_secret())?;
            if let Some(sealed) = self.boxes.get_mut(name) {
                *sealed = Sealed { nonce, text, ..*sealed };
            }
        }
        Ok(values.len())
    }

    /// Whether a key opens any box, where there is one.
    fn check(&self, key: &Key) -> Result<(), VaultError> {
        let fits = self.boxes.is_empty() || self.boxes.iter().any(|(name, sealed)| key.open(name, sealed).is_some());
        if fits { Ok(()) } else { Err(VaultError::WrongKey) }
    }
}

fn new_salt() -> Vec<u8> {
    rand::random::<[u8; 16]>().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "00112233445566778899AABBccddeeff00112233445566778899aabbccddeeff";

    fn filled(master: &str) -> Vault {
        let mut vault = Vault::default();
        for (name, value) in [("a", "value-a"), ("b", "value-b")] {
            vault.set(&master.into(), name, &value.into(), 7).unwrap();
        }
        vault
    }

    fn get(vault: &Vault, master: &str, name: &str) -> Result<String, VaultError> {
        vault.get(&vault.key(&master.into())?, name).map(|value| value.expose_secret().to_owned())
    }

    #[test]
    fn what_was_sealed_opens_under_its_key_alone() {
        for master in [HEX, "ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v8=", "ABEiM0RVZneImaq7zN3u_wARIjNEVWZ3iJmqu8zd7v8", "a passphrase of some length"] {
            let vault = filled(master);
            assert_eq!(get(&vault, master, "b"), Ok("value-b".to_owned()));
            assert_eq!(get(&vault, "another passphrase here", "b"), Err(VaultError::WrongKey));
            assert_eq!(get(&vault, master, "c"), Err(VaultError::Missing("c".to_owned())));
        }
    }

    #[test]
    fn the_forms_of_a_key_are_the_same_key() {
        let vault = filled(HEX);
        assert_eq!(get(&vault, "ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v8=", "a"), Ok("value-a".to_owned()));
        assert_eq!(get(&vault, "ABEiM0RVZneImaq7zN3u_wARIjNEVWZ3iJmqu8zd7v8", "a"), Ok("value-a".to_owned()));
        assert_eq!(get(&vault, "short", "a"), Err(VaultError::Weak));
        assert!(exact(&keygen()).is_some());
    }

    #[test]
    fn swapped_and_altered_boxes_do_not_open() {
        let mut vault = filled(HEX);
        let (a, b) = (vault.boxes["a"].clone(), vault.boxes["b"].clone());
        vault.boxes.insert("a".to_owned(), b);
        assert_eq!(get(&vault, HEX, "a"), Err(VaultError::Altered("a".to_owned())));
        assert_eq!(get(&vault, HEX, "b"), Ok("value-b".to_owned()));
        vault.boxes.insert("a".to_owned(), Sealed { text: a.text.iter().map(|byte| byte ^ 1).collect(), ..a });
        assert_eq!(get(&vault, HEX, "a"), Err(VaultError::Altered("a".to_owned())));
        assert_eq!(vault.rotate(&HEX.into(), &keygen().into()), Err(VaultError::Altered("a".to_owned())));
    }

    #[test]
    fn boxes_under_two_keys_are_refused() {
        let mut vault = filled(HEX);
        assert_eq!(vault.set(&keygen().into(), "c", &"x".into(), 9), Err(VaultError::WrongKey));
        assert_eq!(vault.boxes.len(), 2);
    }

    #[test]
    fn a_rotation_seals_everything_anew() {
        let before = filled(HEX);
        let mut vault = before.clone();
        let new = "the next passphrase, longer";
        assert_eq!(vault.rotate(&HEX.into(), &new.into()), Ok(2));
        assert_eq!(get(&vault, new, "a"), Ok("value-a".to_owned()));
        assert_eq!(get(&vault, HEX, "a"), Err(VaultError::WrongKey));
        assert_eq!(vault.boxes["a"].updated_us, 7);
        for (name, sealed) in &before.boxes {
            assert_ne!(sealed.nonce, vault.boxes[name].nonce);
        }
    }
}
