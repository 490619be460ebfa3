// Package corpus holds clean messages of many shapes: attachments, 8-bit text, dots, long lines, nested and odd MIME, and
// signed ones whose signatures tell whether anything was touched. They were made by the generate command once and are
// kept as they are, each with its SHA-256; [Big] makes large ones when a test runs.
//
// Every message has CRLF line ends and ends in one, so that any client can send it by DATA.
package corpus

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
)

//go:embed mail
var files embed.FS

// Message is one message and the sum that it must still have at the end of its way.
type Message struct {
	Name string
	Data []byte
	Sum  [sha256.Size]byte
}

// Messages returns the corpus in the order of its list.
func Messages() ([]Message, error) {
	list, err := files.ReadFile("mail/SHA256SUMS")
	if err != nil {
		return nil, fmt.Errorf("read list: %w", err)
	}
	var all []Message
	for _, line := range strings.Split(strings.TrimSpace(string(list)), "\n") {
		sum, name, ok := strings.Cut(line, "  ")
		if !ok {
			return nil, fmt.Errorf("read list: bad line %q", line)
		}
		m := Message{Name: strings.TrimSuffix(name, ".eml")}
		if m.Data, err = files.ReadFile("mail/" + name); err != nil {
			return nil, fmt.Errorf("read message: %w", err)
		}
		if n, err := hex.Decode(m.Sum[:], []byte(sum)); err != nil || n != len(m.Sum) {
			return nil, fmt.Errorf("read list: bad sum of %s", name)
		}
		all = append(all, m)
	}
	return all, nil
}

// File returns another file of the corpus: the public halves of the keys that signed.
func File(name string) ([]byte, error) { return files.ReadFile("mail/" + name) }

// Big makes a multipart message with one random attachment, of about size octets altogether. The same seed gives the
// same octets.
func Big(size int, seed uint64) []byte {
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	head := fmt.Sprintf("From: Big <big@client.example>\r\nTo: b@server.example\r\nSubject: %d octets (%d)\r\n"+
		"Date: Sun, 22 Nov 2026 03:00:00 +0000\r\nMessage-ID: <big.%d.%d@client.example>\r\nMIME-Version: 1.0\r\n"+
		"Content-Type: multipart/mixed; boundary=\"b1\"\r\n\r\n--b1\r\nContent-Type: text/plain\r\n\r\nSee the attachment.\r\n"+
		"--b1\r\nContent-Type: application/octet-stream; name=\"big.bin\"\r\nContent-Transfer-Encoding: base64\r\n"+
		"Content-Disposition: attachment; filename=\"big.bin\"\r\n\r\n", size, seed, size, seed)
	const tail = "--b1--\r\n"
	out := make([]byte, 0, size+80)
	out = append(out, head...)
	raw := make([]byte, 57)
	for len(out)+78+len(tail) <= max(size, len(head)+len(tail)+78) {
		_, _ = random.Read(raw)
		out = base64.StdEncoding.AppendEncode(out, raw)
		out = append(out, "\r\n"...)
	}
	return append(out, tail...)
}
