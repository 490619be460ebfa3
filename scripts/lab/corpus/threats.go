package corpus

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"strings"
)

// Eicar returns the harmless test file that every virus scanner knows. It is put together here so that no scanner takes
// the sources for it.
func Eicar() []byte {
	return []byte(strings.Join([]string{`X5O!P%@AP[4\PZX54(P^)7CC)7}$`, "EICAR-STANDARD-", "ANTIVIRUS-TEST-FILE!", "$H+H*"}, ""))
}

// Threats returns messages that must not arrive: the test virus raw, in base64, in a zip, in a zip in a forwarded
// message, and in a tar.gz.
func Threats() ([]Message, error) {
	zipped, err := zipOf("eicar.com", Eicar())
	if err != nil {
		return nil, err
	}
	tgz, err := tarGzOf("eicar.com", Eicar())
	if err != nil {
		return nil, err
	}
	raw := "Content-Type: application/octet-stream; name=\"eicar.com\"\r\nContent-Disposition: attachment; filename=\"eicar.com\"\r\n\r\n" + string(Eicar()) + "\r\n"
	inner := "From: x@client.example\r\nTo: y@client.example\r\nSubject: inner\r\n" + string(mixed("inner", attachment("eicar.zip", zipped)))
	return []Message{
		threat("raw", raw),
		threat("base64", attachment("eicar.com", Eicar())),
		threat("zip", attachment("eicar.zip", zipped)),
		threat("zip-in-rfc822", "Content-Type: message/rfc822\r\nContent-Disposition: attachment\r\n\r\n"+inner),
		threat("tar.gz", attachment("eicar.tar.gz", tgz)),
	}, nil
}

func threat(name, part string) Message {
	head := "From: Sender <a@client.example>\r\nTo: b@server.example\r\nSubject: test virus " + name +
		"\r\nDate: Sun, 22 Nov 2026 03:00:00 +0000\r\nMessage-ID: <virus-" + name + "@client.example>\r\n"
	return Message{Name: "virus-" + name, Data: append([]byte(head), mixed("outer", part)...)}
}

// mixed returns MIME-Version, Content-Type and a body of a text and one more part.
func mixed(boundary, part string) []byte {
	return fmt.Appendf(nil, "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"%s\"\r\n\r\n--%s\r\nContent-Type: text/plain\r\n\r\nSee attachment.\r\n--%s\r\n%s--%s--\r\n",
		boundary, boundary, boundary, part, boundary)
}

func attachment(name string, data []byte) string {
	text := base64.StdEncoding.EncodeToString(data)
	var lines strings.Builder
	for len(text) > 76 {
		lines.WriteString(text[:76] + "\r\n")
		text = text[76:]
	}
	return "Content-Type: application/octet-stream; name=\"" + name + "\"\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename=\"" +
		name + "\"\r\n\r\n" + lines.String() + text + "\r\n"
}

func zipOf(name string, data []byte) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(name)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	err = z.Close()
	return b.Bytes(), err
}

func tarGzOf(name string, data []byte) ([]byte, error) {
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	t := tar.NewWriter(g)
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
		return nil, err
	}
	if _, err := t.Write(data); err != nil {
		return nil, err
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	if err := g.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
