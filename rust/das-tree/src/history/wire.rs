//! Numbers in and out of a file, with a checksum over all of them.

use std::io::{self, Read, Write};

/// An error that says the content is at fault, not the medium.
pub(crate) fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// A writer that keeps the checksum of what went through it.
pub(crate) struct Output<W> {
    writer: W,
    crc: Crc,
}

impl<W: Write> Output<W> {
    pub(crate) fn new(writer: W) -> Self {
        let crc = Crc::default();
        Self { writer, crc }
    }

    pub(crate) fn into_writer(self) -> W {
        self.writer
    }

    /// Hands on what has been written so far.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.add(bytes);
        self.writer.write_all(bytes)
    }

    pub(crate) fn number(&mut self, number: u64) -> io::Result<()> {
        self.bytes(&number.to_le_bytes())
    }

    pub(crate) fn words(&mut self, words: &[u32]) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(4 * words.len().min(BATCH));
        for batch in words.chunks(BATCH) {
            buffer.clear();
            buffer.extend(batch.iter().flat_map(|word| word.to_le_bytes()));
            self.bytes(&buffer)?;
        }
        Ok(())
    }

    pub(crate) fn checksum(&mut self) -> io::Result<()> {
        self.bytes(&self.crc.value().to_le_bytes())
    }
}

/// Words converted at a time. Also bounds what a false length makes the reader allocate before the file ends.
const BATCH: usize = 1 << 14;

/// A reader that keeps the checksum of what went through it.
pub(crate) struct Input<R> {
    reader: R,
    crc: Crc,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(reader: R) -> Self {
        let crc = Crc::default();
        Self { reader, crc }
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.reader
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    damaged("it ends too early: it was truncated, restore it or remove it")
                }
                _ => error,
            })?;
        self.crc.add(bytes);
        Ok(())
    }

    pub(crate) fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn words(&mut self, count: usize) -> io::Result<Vec<u32>> {
        let mut words = Vec::new();
        let mut buffer = vec![0; 4 * count.min(BATCH)];
        while words.len() < count {
            let batch = &mut buffer[..4 * (count - words.len()).min(BATCH)];
            self.fill(batch)?;
            let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("chunks of four"));
            words.extend(batch.chunks_exact(4).map(word));
        }
        Ok(words)
    }

    pub(crate) fn checksum(&mut self, of: &str) -> io::Result<()> {
        let (expected, mut found) = (self.crc.value(), [0; 4]);
        self.fill(&mut found)?;
        if u32::from_le_bytes(found) != expected {
            return Err(damaged(format!(
                "it is damaged: the checksum of {of} does not match, restore it or remove it"
            )));
        }
        Ok(())
    }

    pub(crate) fn end(&mut self) -> io::Result<()> {
        match self.reader.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(damaged(
                "it is damaged: there is something after its end, restore it or remove it",
            )),
        }
    }
}

/// CRC-32 as of IEEE 802.3.
pub(crate) struct Crc(u32);

impl Default for Crc {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = value >> 1 ^ if value & 1 == 1 { 0xEDB8_8320 } else { 0 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 >> 8 ^ Self::TABLE[(self.0 as u8 ^ byte) as usize];
        }
    }

    pub(crate) fn value(&self) -> u32 {
        !self.0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standard_one() {
        let mut crc = Crc::default();
        crc.add(b"1234");
        crc.add(b"56789");
        assert_eq!(crc.value(), 0xCBF4_3926);
    }
}
