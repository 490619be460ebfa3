package maild

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
)

// TestUnionParts: the rest of section 6.2, of parts that are proper but easily overlooked.
func TestUnionParts(t *testing.T) {
	under := func(row, name, contentType string) trick {
		return trick{row, name, benign, lf(func(z string) string { return mixed(contentType, "b", helloEntity, fileEntity(z)) })}
	}
	tricks := []trick{
		{"M-026", "a part of a digest without header", benign, lf(func(z string) string {
			return mixed("Content-Type: multipart/digest; boundary=b", "b", "\n"+strings.NewReplacer("boundary=b", "boundary=c", "--b", "--c").Replace(attached64(z)))
		})},
		{"M-030", "a text with a name, inline", benign, lf(func(z string) string {
			return onePart("Content-Type: text/plain; name=x.exe\nContent-Disposition: inline; filename=x.exe\nContent-Transfer-Encoding: base64", lf64(z))
		})},
		{"M-033", "Content-Length and Lines too small", benign, lf(func(z string) string {
			return mixed("Content-Length: 10\nLines: 1\nContent-Type: multipart/mixed; boundary=b", "b", helloEntity, "Content-Length: 3\nLines: 0\n"+fileEntity(z))
		})},
		{"M-034", "an attachment that only some see", hostile, lf(func(z string) string {
			return headed("Content-Type: multipart/mixed; boundary=b\n\n--b\n" + helloEntity + "--b--\n\n--b\nContent-Disposition: attachment\n" + fileEntity(z))
		})},
		{"M-053", "fields that mean nothing here", benign, lf(func(z string) string {
			return onePart("Content-Language: en\nContent-Features: (x=y)\nContent-Location: a\n"+attachedHeader, lf64(z))
		})},
	}
	for _, sub := range []string{"alternative", "related", "report; report-type=delivery-status", "signed; protocol=\"application/pgp-signature\"", "encrypted", "appledouble", "x-mixed-replace", "parallel"} {
		tricks = append(tricks, under("M-026", sub, "Content-Type: multipart/"+sub+"; boundary=b"))
	}
	tryAll(t, tricks)
}

// TestUnionEncodings: section 6.3 of interception.md.
func TestUnionEncodings(t *testing.T) {
	in := func(row, name string, c class, encode func(z string) string) trick {
		return trick{row, name, c, func(z string) string {
			return strings.Replace(crlf(onePart(attachedHeader, "@@")), "@@", encode(z), 1)
		}}
	}
	text := func(row, name string, c class, header string, encode func(z string) string) trick {
		return trick{row, name, c, func(z string) string {
			return strings.Replace(crlf(onePart(header, "@@")), "@@", encode(z), 1)
		}}
	}
	whole := base64.StdEncoding.EncodeToString
	asQP := func(change func(s string) string) func(string) string {
		return func(z string) string { return change(qpBinary(z)) }
	}
	const qpHeader = "Content-Type: application/zip; name=x.zip\nContent-Transfer-Encoding: quoted-printable"
	tryAll(t, slices.Concat([]trick{
		in("M-040", "stars", hostile, func(z string) string { return broken64(z, 7, "*") }),
		in("M-040", "blanks", benign, func(z string) string { return broken64(z, 8, " ") }),
		in("M-040", "quoted lines", hostile, func(z string) string { return "> " + strings.ReplaceAll(b64(z), "\n", "\n> ") }),
		in("M-040", "punctuation", hostile, func(z string) string { return broken64(z, 5, ".!#") }),
		in("M-040", "behind junk with an end of its own", hostile, func(z string) string { return b64(z) + "\r\n*** hello ***" }),
		in("M-041", "ignored", hostile, func(z string) string { return broken64(z, 5, "=") }),
		in("M-041", "a new stream", hostile, func(z string) string {
			return whole([]byte(z[:10])) + "\r\n" + whole([]byte(z[10:]))
		}),
		in("M-041", "zero", hostile, func(z string) string { return "QQ==" + b64(z) }),
		in("M-041", "the end", hostile, func(z string) string { return whole([]byte(z+strings.Repeat("x", 4-len(z)%3))) + "\r\nAAAA" }),
		in("M-042", "no padding", either, func(z string) string {
			return strings.TrimRight(whole([]byte(z+strings.Repeat("\x00", 1+(3-len(z)%3)%3))), "=")
		}),
		in("M-042", "a stray character before each line", hostile, func(z string) string { return "A" + strings.ReplaceAll(b64(z), "\r\n", "\r\nA") }),
		in("M-042", "a stray character behind each line", hostile, func(z string) string { return strings.ReplaceAll(b64(z), "\r\n", "A\r\n") + "A" }),
		in("M-043", "minus and underscore", hostile, func(z string) string { return base64.URLEncoding.EncodeToString([]byte(z)) }),
		in("M-043", "comma", either, func(z string) string { return strings.ReplaceAll(whole([]byte(z)), "/", ",") }),
		in("M-045", "behind the last padding", hostile, func(z string) string { return b64("hello, worl") + "\r\n" + b64(z) }),
		text("M-046", "lower case", either, qpHeader, asQP(lowerEscapes)),
		text("M-046", "blanks at line ends", either, qpHeader, asQP(func(s string) string { return strings.ReplaceAll(s, "=\r\n", "= \t\r\n") })),
		text("M-046", "soft line ends of CR", either, qpHeader, asQP(func(s string) string { return strings.ReplaceAll(s, "=\r\n", "=\r") })),
		text("M-046", "soft line ends of LF", either, qpHeader, asQP(func(s string) string { return strings.ReplaceAll(s, "=\r\n", "=\n") })),
		text("M-046", "an encoded delimiter before", either, qpHeader, asQP(func(s string) string { return "=0D=0A--b=0D=0A" + s })),
		text("M-046", "escapes that are none", either, qpHeader, asQP(func(s string) string { return "==3 =g =\r\n" + s })),
		text("M-047", "in a text", either, "Content-Type: text/plain", func(z string) string { return "hello\r\n\r\n" + uuencode("x.exe", z) + "\r\nbye" }),
		text("M-047", "in HTML", either, "Content-Type: text/html", func(z string) string { return "<html><pre>\r\n" + uuencode("x.exe", z) + "</pre></html>" }),
		text("M-047", "several", either, "Content-Type: text/plain", func(z string) string { return uuencode("a.txt", "hello") + uuencode("x.exe", z) }),
		text("M-047", "without end", either, "Content-Type: text/plain", func(z string) string { return strings.TrimSuffix(uuencode("x.zip", z), "`\r\nend\r\n") }),
		text("M-047", "with a delimiter within", either, "Content-Type: text/plain", func(z string) string {
			u := uuencode("x.zip", z)
			i := strings.Index(u, "\r\n") + 2
			i += strings.Index(u[i:], "\r\n") + 2
			return u[:i] + "--b\r\n" + u[i:]
		}),
		text("M-047", "begin-base64", either, "Content-Type: text/plain", func(z string) string { return "begin-base64 644 x.exe\r\n" + b64(z) + "\r\n====\r\n" }),
		{"M-047", "in a message without MIME", either, func(z string) string {
			return crlf("From: a@example.org\nSubject: x\n\nhello\n") + uuencode("x.exe", z)
		}},
	}))
}

// TestUnionLineEnds: section 6.7 of interception.md.
func TestUnionLineEnds(t *testing.T) {
	const plainType = "Content-Type: multipart/mixed; boundary=b"
	tricks := []trick{
		{"M-090", "only if LF ends a line", hostile, func(z string) string {
			return crlf(headed(plainType+"\n\n--b\n"+helloEntity)) + "x\n--b\n" + fileEntity(z) + crlf("--b--\n")
		}},
		{"M-090", "only if CR ends a line", hostile, func(z string) string {
			return crlf(headed(plainType+"\n\n--b\n"+helloEntity)) + strings.ReplaceAll("x\n--b\n"+fileEntity(z), "\n", "\r") + crlf("\n--b--\n")
		}},
		{"M-090", "only if neither does", hostile, func(z string) string {
			return strings.ReplaceAll(crlf(headed("X: y@@\n"+plainType+"\n\n--b\n"+helloEntity+"--b\nX: y@@"+"\n"+fileEntity(z)+"--b--\n")), "@@", "\n\nhello\n")
		}},
		{"M-091", "everywhere", hostile, func(z string) string {
			return strings.ReplaceAll(crlf(mixed(plainType, "b", helloEntity, fileEntity(z))), "\r\n", "\r\r\n")
		}},
		{"M-091", "in the header of the part", hostile, func(z string) string {
			return crlf(mixed(plainType, "b", helloEntity)) + crlf("--b\n") + strings.ReplaceAll(fileEntity(z), "\n", "\r\r\n") + crlf("--b--\n")
		}},
		{"M-093", "no line end", either, func(z string) string {
			return strings.TrimSuffix(crlf(mixed(plainType, "b", helloEntity, fileEntity(z))), "\r\n")
		}},
		{"M-093", "within the last delimiter", either, func(z string) string {
			return strings.TrimSuffix(crlf(mixed(plainType, "b", helloEntity, fileEntity(z))), "b--\r\n")
		}},
		{"M-093", "within base64", either, func(z string) string {
			return strings.TrimSuffix(crlf(mixed(plainType, "b", helloEntity, fileEntity(z))), "\r\n--b--\r\n")
		}},
	}
	tryAll(t, tricks)
}

// lowerEscapes writes the escapes of quoted-printable in lower case.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '=' && i+2 < len(b) && b[i+1] != '\r' {
			copy(b[i+1:], strings.ToLower(s[i+1:i+3]))
		}
	}
	return string(b)
}
