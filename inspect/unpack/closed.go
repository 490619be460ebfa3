package unpack

import "bytes"

// closedMagic are formats that are known and not opened yet. They are detected so that Walk can say so: an archive that
// nobody has looked into must not look like one with nothing in it.
var closedMagic = [...]struct {
	at     int
	magic  string
	format string
}{
	{0, "Rar!\x1a\x07", "rar"},
	{0, "7z\xbc\xaf\x27\x1c", "7z"},
	{0, "\xfd7zXZ\x00", "xz"},
	{0, "\x28\xb5\x2f\xfd", "zstd"},
	{0, "\x04\x22\x4d\x18", "lz4"},
	{0, "LZIP\x01", "lzip"},
	{0, "MSCF\x00\x00\x00\x00", "cab"},
	{0, "\x1f\x9d", "compress"},
	{0, "\x60\xea", "arj"}, // checked further below
	{7, "**ACE**", "ace"},
	{2, "-lh", "lzh"}, // checked further below
	{2, "-lz", "lzh"},
	{0, "070701", "cpio"},
	{0, "070702", "cpio"},
	{0, "070707", "cpio"},
	{0, "!<arch>\n", "ar"},
	{0, "\xed\xab\xee\xdb", "rpm"},
}

// detectClosed tells the format of an archive that Walk cannot open.
func detectClosed(head []byte) (format string, ok bool) {
	for _, c := range closedMagic {
		if len(head) < c.at+len(c.magic) || !bytes.HasPrefix(head[c.at:], []byte(c.magic)) {
			continue
		}
		switch c.format {
		case "arj": // ARJ technical information: size of the basic header, at most 2600, then that of its first part
			if len(head) < 11 || int(head[2])|int(head[3])<<8 > 2600 || head[4] < 30 || head[10] > 3 {
				continue
			}
		case "lzh": // "-lh5-", "-lhd-", "-lzs-" …
			if len(head) < 7 || head[6] != '-' {
				continue
			}
		case "compress": // flags: 9 to 16 bits, two bits unused
			if len(head) < 3 || head[2]&0x60 != 0 || head[2]&0x1f < 9 || head[2]&0x1f > 16 {
				continue
			}
		}
		return c.format, true
	}
	return "", false
}

// isClosed tells whether a format is known and not opened.
func isClosed(format string) bool {
	for _, c := range closedMagic {
		if c.format == format {
			return true
		}
	}
	return false
}
