package maild

import (
	"mime/quotedprintable"
	"slices"
	"strings"
	"testing"
)

// qpBinary is quoted-printable of what is no text.
func qpBinary(s string) string {
	var b strings.Builder
	w := quotedprintable.NewWriter(&b)
	w.Binary = true
	w.Write([]byte(s))
	w.Close()
	return b.String()
}

func lf(write func(z string) string) func(string) string {
	return func(z string) string { return crlf(write(z)) }
}

// TestUnionStructure: section 6.2 of interception.md. The file is an object in one of the readings only.
func TestUnionStructure(t *testing.T) {
	const plainType = "Content-Type: multipart/mixed; boundary="
	tryAll(t, slices.Concat(
		under("M-001", "two Content-Type", hostile, "Content-Type: multipart/mixed; boundary=first\nContent-Type: multipart/mixed; boundary=second", "first", "second"),
		under("M-001", "text, then multipart", hostile, "Content-Type: text/plain\nContent-Type: multipart/mixed; boundary=second", "second"),
		under("M-001", "multipart, then text", hostile, "Content-Type: multipart/mixed; boundary=first\nContent-Type: text/plain", "first"),
		under("M-001", "three Content-Type", hostile, "Content-Type: multipart/mixed; boundary=first\nX: y\ncontent-type: multipart/mixed; boundary=second\nCONTENT-TYPE: multipart/mixed; boundary=third", "first", "second", "third"),
		under("M-002", "two parameters", hostile, plainType+"aa; boundary=bb", "aa", "bb"),
		under("M-002", "three parameters", hostile, plainType+"aa; boundary=bb; Boundary=cc", "aa", "bb", "cc"),
		under("M-003", "continued", hostile, "Content-Type: multipart/mixed; boundary*0=aa; boundary*1=bb; boundary=xx", "aabb", "xx", "aa"),
		under("M-003", "extended", hostile, "Content-Type: multipart/mixed; boundary*=us-ascii''aabb; boundary=xx", "aabb", "xx", "us-ascii''aabb"),
		under("M-003", "extended and continued", hostile, "Content-Type: multipart/mixed; boundary=xx; boundary*0*=us-ascii''a%61; boundary*1=bb", "aabb", "xx", "a%61bb"),
		under("M-003", "continued out of order", hostile, "Content-Type: multipart/mixed; boundary*1=bb; boundary*0=aa", "aabb", "bbaa"),
		under("M-004", "quoted, as it should be", benign, plainType+`"a b"`, "a b"),
		under("M-004", "space at the end", hostile, plainType+`"ab "`, "ab", "ab "),
		under("M-004", "comment", hostile, plainType+`ab (c)`, "ab", "ab (c)"),
		under("M-004", "backslash", hostile, plainType+`"a\b"`, "ab", `a\b`),
		under("M-004", "apostrophes", hostile, plainType+`'ab'`, "ab", "'ab'"),
		under("M-004", "without end quote", hostile, plainType+`"ab; charset=x`, "ab", "ab; charset=x", `"ab`),
		under("M-004", "blank unquoted", hostile, plainType+`aa bb`, "aa", "aa bb"),
		under("M-004", "text behind the quotes", hostile, plainType+`"aa"bb`, "aa", "aabb", `"aa"bb`),
		under("M-004", "quotes in the middle", hostile, plainType+`aa"bb"`, `aa"bb"`, "aabb", "aa"),
		under("M-004", "semicolon in quotes", hostile, plainType+`"aa;bb"`, "aa;bb", `"aa`, "aa"),
		under("M-004", "blank before the equals sign", either, `Content-Type: multipart/mixed; boundary = ab`, "ab"),
		under("M-004", "no semicolon", hostile, `Content-Type: multipart/mixed boundary=ab`, "ab"),
		under("M-004", "comma for a semicolon", hostile, `Content-Type: multipart/mixed, boundary=ab`, "ab"),
		under("M-004", "colon for an equals sign", hostile, `Content-Type: multipart/mixed; boundary:ab`, "ab"),
		under("M-005", "empty", hostile, plainType+`""`, "", "ab"),
		under("M-005", "missing", hostile, "Content-Type: multipart/mixed", "ab", "----ab"),
		under("M-005", "no value", hostile, plainType, "ab", ""),
		under("M-006", "prefix", hostile, plainType+"a", "ab"),
		under("M-006", "another case of letters", hostile, plainType+"AbC", "aBc"),
		[]trick{
			{"M-006", "child within the parent's delimiter", hostile, lf(func(z string) string {
				return mixed(plainType+"b", "b", helloEntity, "Content-Type: multipart/mixed; boundary=b\n\n--b\n"+helloEntity+"--b\n"+fileEntity(z)+"--b--\n", helloEntity)
			})},
			{"M-006", "behind the child with the parent's delimiter", hostile, lf(func(z string) string {
				return mixed(plainType+"b", "b", helloEntity, "Content-Type: multipart/mixed; boundary=b\n\n--b\n"+helloEntity+"--b--\n", fileEntity(z))
			})},
			{"M-006", "child whose delimiter begins with the parent's", either, lf(func(z string) string {
				return mixed(plainType+"b", "b", helloEntity, "Content-Type: multipart/mixed; boundary=bc\n\n--bc\n"+helloEntity+"--bc\n"+fileEntity(z)+"--bc--\n", helloEntity)
			})},
			{"M-006", "parent's delimiter begins with the child's", either, lf(func(z string) string {
				return mixed(plainType+"bc", "bc", helloEntity, "Content-Type: multipart/mixed; boundary=b\n\n--b\n"+helloEntity+"--b\n"+fileEntity(z)+"--b--\n", helloEntity)
			})},
			{"M-007", "blanks behind", benign, lf(func(z string) string {
				return headed(plainType + "b\n\n--b  \t\n" + helloEntity + "--b \n" + fileEntity(z) + "--b-- \n")
			})},
			{"M-007", "text behind", hostile, lf(func(z string) string {
				return headed(plainType + "b\n\n--b\n" + helloEntity + "--b evil\n" + fileEntity(z) + "--b--\n")
			})},
			{"M-007", "characters behind", hostile, lf(func(z string) string {
				return headed(plainType + "b\n\n--b\n" + helloEntity + "--bX evil\n" + fileEntity(z) + "--b--\n")
			})},
			{"M-007", "blank before", hostile, lf(func(z string) string {
				return headed(plainType + "b\n\n--b\n" + helloEntity + " --b\n" + fileEntity(z) + "--b--\n")
			})},
			{"M-007", "text before", hostile, lf(func(z string) string {
				return headed(plainType + "b\n\n--b\n" + "Content-Type: text/plain\n\nhello--b\n" + fileEntity(z) + "--b--\n")
			})},
			{"M-007", "more dashes before", hostile, lf(func(z string) string {
				return headed(plainType + "b\n\n--b\n" + helloEntity + "----b\n" + fileEntity(z) + "--b--\n")
			})},
			{"M-008", "the last part", benign, lf(func(z string) string {
				return headed(plainType + "b\n\n--b\n" + helloEntity + "--b\n" + fileEntity(z))
			})},
			{"M-009", "parts behind the end", hostile, lf(func(z string) string {
				return mixed(plainType+"b", "b", helloEntity) + "--b\n" + fileEntity(z) + "--b--\n"
			})},
			{"M-009", "an entity behind the end", hostile, lf(func(z string) string {
				return mixed(plainType+"b", "b", helloEntity) + fileEntity(z)
			})},
			{"M-009", "uuencode behind the end", either, func(z string) string {
				return crlf(mixed(plainType+"b", "b", helloEntity)) + uuencode("x.zip", z)
			}},
			{"M-010", "a part with other delimiters", hostile, lf(func(z string) string {
				return headed(plainType + "b\n\n--pre\n" + fileEntity(z) + "--pre--\n\n--b\n" + helloEntity + "--b--\n")
			})},
			{"M-010", "an entity", hostile, lf(func(z string) string {
				return headed(plainType + "b\n\n" + fileEntity(z) + "\n--b\n" + helloEntity + "--b--\n")
			})},
			{"M-010", "uuencode", either, func(z string) string {
				return crlf(headed(plainType+"b\n\n")) + uuencode("x.zip", z) + crlf("\n--b\n"+helloEntity+"--b--\n")
			}},
			{"M-011", "at the end of the header", hostile, lf(func(z string) string {
				return headed(plainType + "b\n--b\n" + fileEntity(z) + "--b--\n")
			})},
			{"M-011", "before more of the header", hostile, lf(func(z string) string {
				return headed(plainType + "b\n--b\n" + fileEntity(z) + "--b\nX: y\n\n--b--\n")
			})},
			{"M-012", "base64 at once", hostile, lf(func(z string) string {
				return strings.Replace(onePart("Content-Type: application/zip", ""), "Content-Type: application/zip\n\n", "Content-Type: application/zip\nContent-Transfer-Encoding: base64\n"+lf64(z), 1)
			})},
			{"M-012", "garbage in the header", hostile, lf(func(z string) string {
				return onePart("Content-Type: application/zip\ngarbage without colon\nContent-Transfer-Encoding: base64", lf64(z))
			})},
			{"M-012", "garbage first in the header", hostile, lf(func(z string) string {
				return onePart("garbage without colon\nContent-Type: application/zip\nContent-Transfer-Encoding: base64", lf64(z))
			})},
			{"M-012", "garbage and then an entity of its own", hostile, lf(func(z string) string {
				return onePart("Content-Type: text/plain\ngarbage\nContent-Type: application/zip\nContent-Transfer-Encoding: base64", lf64(z))
			})},
			{"M-013", "base64 of a multipart", hostile, lf(func(z string) string {
				return headed(plainType + "b\nContent-Transfer-Encoding: base64\n\n" + lf64("--b\n"+helloEntity+"--b\n"+fileEntity(z)+"--b--\n"))
			})},
			{"M-013", "said to be base64", hostile, lf(func(z string) string {
				return mixed(plainType+"b\nContent-Transfer-Encoding: base64", "b", helloEntity, fileEntity(z))
			})},
			{"M-013", "quoted-printable of a multipart", hostile, func(z string) string {
				return crlf(headed(plainType+"b\nContent-Transfer-Encoding: quoted-printable\n\n")) + qp(crlf("--b\n"+helloEntity+"--b\n"+fileEntity(z)+"--b--\n"))
			}},
			{"M-013", "an inner multipart in base64", hostile, lf(func(z string) string {
				return onePart("Content-Type: multipart/mixed; boundary=c\nContent-Transfer-Encoding: base64", lf64("--c\n"+fileEntity(z)+"--c--\n"))
			})},
			{"M-014", "base64 of a message", benign, lf(func(z string) string {
				return onePart("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64", lf64(attached64(z)))
			})},
			{"M-014", "quoted-printable of a message", either, func(z string) string {
				return crlf(headed("Content-Type: message/rfc822\nContent-Transfer-Encoding: quoted-printable\n\n")) + qp(crlf(attached64(z)))
			}},
			{"M-014", "said to be base64", either, lf(func(z string) string {
				return headed("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n") + attached64(z)
			})},
		},
	))
}

// TestUnionHeaders: the part of section 6.2 that is about header fields.
func TestUnionHeaders(t *testing.T) {
	const plainType = "Content-Type: multipart/mixed; boundary=b"
	as := func(row, name string, c class, contentType string) trick {
		return trick{row, name, c, lf(func(z string) string { return mixed(contentType, "b", helloEntity, fileEntity(z)) })}
	}
	part := func(row, name string, c class, header string) trick {
		return trick{row, name, c, lf(func(z string) string { return onePart(header, lf64(z)) })}
	}
	raw := func(row, name string, c class, change func(s string) string) trick {
		return trick{row, name, c, func(z string) string {
			return change(crlf(mixed(plainType, "b", helloEntity, fileEntity(z))))
		}}
	}
	replace := func(pairs ...string) func(string) string { return strings.NewReplacer(pairs...).Replace }
	first := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	var folds strings.Builder
	for range 1000 {
		folds.WriteString("\n ")
		folds.WriteString("x=y;")
	}
	long := strings.Repeat("abcdefghij", 12)
	huge := strings.Repeat("abcdefghij", 1000)
	tryAll(t, slices.Concat([]trick{
		raw("M-017", "no MIME-Version", either, first("MIME-Version: 1.0\r\n", "")),
		as("M-017", "no subtype", either, "Content-Type: multipart; boundary=b"),
		as("M-017", "no type", either, "Content-Type: /mixed; boundary=b"),
		as("M-017", "three", either, "Content-Type: multipart/mixed/x; boundary=b"),
		as("M-017", "semicolons", either, "Content-Type: ;; boundary=b"),
		as("M-017", "unknown subtype", benign, "Content-Type: multipart/x-unheard-of; boundary=b"),
		as("M-017", "another type with a delimiter", either, "Content-Type: text/plain; boundary=b"),
		as("M-017", "no type at all but delimiters", either, "X-Y: z"),
		part("M-017", "an attachment of type text", either, "Content-Type: text\nContent-Transfer-Encoding: base64"),
		part("M-017", "an attachment of no type", either, "Content-Type: /plain\nContent-Transfer-Encoding: base64"),
		part("M-017", "an attachment of three types", either, "Content-Type: text/plain/x\nContent-Transfer-Encoding: base64"),
		part("M-017", "an attachment of semicolons", either, "Content-Type: ;;\nContent-Transfer-Encoding: base64"),
		as("M-018", "NUL", hostile, "Content-Type: multi\x00part/mixed; boundary=b"),
		as("M-018", "NUL at the end", hostile, "Content-Type: multipart/mixed\x00; boundary=b"),
		as("M-018", "control character", hostile, "Content-Type: multi\x01part/mixed; boundary=b"),
		as("M-018", "8-bit character", hostile, "Content-Type: multipart/mixed\xa0; boundary=b"),
		as("M-018", "encoded word", hostile, "Content-Type: =?us-ascii?q?multipart/mixed?=; boundary=b"),
		as("M-018", "whole as an encoded word", hostile, "Content-Type: =?us-ascii?q?multipart/mixed;_boundary=3Db?="),
		as("M-018", "folded within a word", hostile, "Content-Type: multipart/mi\n xed; boundary=b"),
		as("M-018", "folded within multipart", hostile, "Content-Type: multi\n part/mixed; boundary=b"),
		as("M-018", "comments", hostile, "Content-Type: (x) multipart/(y)mixed (z); (a) boundary(b)=(c)b"),
		as("M-018", "comment that does not end", hostile, "Content-Type: multipart/mixed (x; boundary=b"),
		as("M-018", "quoted", hostile, `Content-Type: "multipart/mixed"; boundary=b`),
		as("M-019", "blank before the colon", hostile, "Content-Type : multipart/mixed; boundary=b"),
		as("M-019", "tab before the colon", hostile, "Content-Type\t: multipart/mixed; boundary=b"),
		as("M-019", "blank before the name", hostile, " Content-Type: multipart/mixed; boundary=b"),
		as("M-019", "underscore", hostile, "Content_Type: multipart/mixed; boundary=b"),
		as("M-019", "NUL before the colon", hostile, "Content-Type\x00: multipart/mixed; boundary=b"),
		as("M-019", "NUL in the name", hostile, "Content-\x00Type: multipart/mixed; boundary=b"),
		as("M-019", "8-bit character before the colon", hostile, "Content-Type\xa0: multipart/mixed; boundary=b"),
		as("M-019", "another case of letters", benign, "cOnTeNt-tYpE: multipart/mixed; boundary=b"),
		as("M-019", "no blank behind the colon", benign, "Content-Type:multipart/mixed; boundary=b"),
		as("M-019", "tab behind the colon", benign, "Content-Type:\tmultipart/mixed; boundary=b"),
		as("M-019", "double colon", hostile, "Content-Type:: multipart/mixed; boundary=b"),
		{"M-019", "blank before the first field", hostile, lf(func(z string) string {
			return " Content-Type: multipart/mixed; boundary=b\n" + mixed("X: y", "b", helloEntity, fileEntity(z))
		})},
		as("M-020", "line of a blank", hostile, "Content-Type: multipart/mixed;\n \n boundary=b"),
		as("M-020", "line of a blank before the field", hostile, "X: y\n \nContent-Type: multipart/mixed; boundary=b"),
		{"M-020", "line of a blank ends the header", hostile, lf(func(z string) string {
			return headed("Content-Type: multipart/mixed; boundary=b\n \n--b\n" + fileEntity(z) + "--b--\n")
		})},
		{"M-020", "line of a blank ends the header of the part", hostile, lf(func(z string) string {
			return strings.Replace(onePart("Content-Type: application/zip\nContent-Transfer-Encoding: base64\n \nX-Junk: y", "x"), "X-Junk: y\n\nx", lf64(z), 1)
		})},
		as("M-020", "fold with a bare CR", hostile, "Content-Type: multipart/mixed;\r boundary=b"),
		as("M-020", "field behind a bare CR", hostile, "X: y\rContent-Type: multipart/mixed; boundary=b"),
		as("M-020", "fold before the colon", hostile, "Content-Type\n : multipart/mixed; boundary=b"),
		as("M-020", "a thousand folds", either, "Content-Type: multipart/mixed;"+folds.String()+" boundary=b"),
		as("M-020", "fold without a blank", hostile, "Content-Type: multipart/mixed;\nboundary=b"),
		raw("M-021", "LF LF", hostile, first("boundary=b\r\n\r\n", "boundary=b\n\n")),
		raw("M-021", "CR CR", hostile, first("boundary=b\r\n\r\n", "boundary=b\r\r")),
		raw("M-021", "CR LF CR", hostile, first("boundary=b\r\n\r\n", "boundary=b\r\n\r")),
		raw("M-021", "LF CR LF", hostile, first("boundary=b\r\n\r\n", "boundary=b\n\r\n")),
		raw("M-021", "CR CR LF", hostile, first("boundary=b\r\n\r\n", "boundary=b\r\r\n")),
		raw("M-021", "CR CR in the part", hostile, first("base64\r\n\r\n", "base64\r\r")),
		raw("M-021", "LF LF in the part", hostile, first("base64\r\n\r\n", "base64\n\n")),
		raw("M-021", "LF everywhere", benign, replace("\r\n", "\n")),
		raw("M-021", "blank line first", hostile, func(s string) string { return "\r\n" + s }),
		raw("M-021", "blank lines first", hostile, func(s string) string { return "\r\n\r\n" + s }),
		raw("M-021", "From line first", either, func(s string) string { return "From a@example.org Thu Jan  1 00:00:00 1970\r\n" + s }),
		raw("M-021", "From line within", either, first("Subject:", "From a@example.org Thu Jan  1 00:00:00 1970\r\nSubject:")),
		raw("M-021", "byte order mark", hostile, func(s string) string { return "\xef\xbb\xbf" + s }),
		{"M-021", "byte order mark before the type", hostile, lf(func(z string) string {
			return "\xef\xbb\xbfContent-Type: multipart/mixed; boundary=b\n" + mixed("X: y", "b", helloEntity, fileEntity(z))
		})},
		raw("M-022", "before a delimiter", hostile, replace("\r\n--b\r\n", "\r--b\r")),
		raw("M-022", "everywhere in the body", hostile, func(s string) string {
			head, body, _ := strings.Cut(s, "\r\n\r\n")
			return head + "\r\n\r\n" + strings.ReplaceAll(body, "\r\n", "\r")
		}),
		raw("M-022", "everywhere", hostile, replace("\r\n", "\r")),
		raw("M-022", "behind the delimiter", hostile, replace("--b\r\n", "--b\r")),
	},
		under("M-023", "8-bit", hostile, "Content-Type: multipart/mixed; boundary=\"\xe4b\"", "\xe4b"),
		under("M-023", "UTF-8", hostile, "Content-Type: multipart/mixed; boundary=\"äb\"", "äb"),
		under("M-023", "120 characters", hostile, "Content-Type: multipart/mixed; boundary="+long, long, long[:70], long[:69]),
		under("M-023", "10 KB", hostile, "Content-Type: multipart/mixed; boundary="+huge, huge, huge[:70]),
		under("M-023", "characters of patterns", either, `Content-Type: multipart/mixed; boundary="a.*[b]+(c|d)?$^\\"`, `a.*[b]+(c|d)?$^\`),
		under("M-024", "NUL in the parameter", hostile, "Content-Type: multipart/mixed; boundary=\"a\x00b\"", "ab", "a", "a\x00b"),
		under("M-024", "NUL in the delimiter", hostile, "Content-Type: multipart/mixed; boundary=ab", "a\x00b", "ab\x00", "ab\x00c", "\x00ab"),
		[]trick{
			{"M-024", "NUL before the delimiter", hostile, lf(func(z string) string {
				return mixed(plainType, "b", helloEntity) + strings.Replace(mixed(plainType, "b", fileEntity(z)), "--b", "\x00--b", 1)
			})},
			as("M-024", "NUL in a header", hostile, "X\x00: y\nContent-Type: multipart/mixed; bound\x00ary=b"),
			as("M-024", "NUL ends a line", hostile, "X: y\x00Content-Type: multipart/mixed; boundary=b"),
			{"M-024", "NUL in base64", either, lf(func(z string) string {
				return onePart(attachedHeader, broken64(z, 8, "\x00"))
			})},
			{"M-024", "NUL for line ends in base64", either, lf(func(z string) string {
				return onePart(attachedHeader, broken64(z, 77, "\x00"))
			})},
			part("M-025", "base64, then 7bit", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: base64\nContent-Transfer-Encoding: 7bit"),
			part("M-025", "7bit, then base64", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64"),
			part("M-025", "quoted-printable, then base64", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: quoted-printable\nContent-Transfer-Encoding: base64"),
			part("M-025", "two in a field", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: 7bit, base64"),
			part("M-025", "a list that ends in 7bit", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: base64, 7bit"),
			part("M-025", "with a parameter", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: base64;x"),
			part("M-025", "with a blank", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: base 64"),
			part("M-025", "with a comment", either, "Content-Type: application/zip\nContent-Transfer-Encoding: (x)base64(y)"),
			part("M-025", "quoted", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: \"base64\""),
			part("M-025", "x-base64", either, "Content-Type: application/zip\nContent-Transfer-Encoding: x-base64"),
			part("M-025", "base64 in binary", either, "Content-Type: application/zip\nContent-Transfer-Encoding: binary"),
			part("M-025", "base64 in x-uuencode", either, "Content-Type: application/zip\nContent-Transfer-Encoding: x-uuencode"),
			part("M-025", "base64 in quoted-printable", either, "Content-Type: application/zip\nContent-Transfer-Encoding: quoted-printable"),
			part("M-025", "empty", either, "Content-Type: application/zip\nContent-Transfer-Encoding:"),
			part("M-025", "encoded word", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding: =?us-ascii?q?base64?="),
			part("M-025", "in the type", either, "Content-Type: application/zip; encoding=base64"),
			part("M-025", "a blank before the colon", hostile, "Content-Type: application/zip\nContent-Transfer-Encoding : base64"),
			part("M-025", "a name that is almost it", either, "Content-Type: application/zip\nContent-Encoding: base64"),
			{"M-025", "uuencode that is said to be 7bit", either, func(z string) string {
				return strings.Replace(crlf(onePart("Content-Type: application/zip\nContent-Transfer-Encoding: 7bit", "@@")), "@@", uuencode("x", z), 1)
			}},
			{"M-025", "x-uuencode", either, func(z string) string {
				return strings.Replace(crlf(onePart("Content-Type: application/zip\nContent-Transfer-Encoding: x-uuencode", "@@")), "@@", uuencode("x", z), 1)
			}},
			{"M-025", "uuencode that is said to be base64", either, func(z string) string {
				return strings.Replace(crlf(onePart("Content-Type: application/zip\nContent-Transfer-Encoding: base64", "@@")), "@@", uuencode("x", z), 1)
			}},
			{"M-025", "quoted-printable that is said to be 7bit", either, func(z string) string {
				return strings.Replace(crlf(onePart("Content-Type: application/zip\nContent-Transfer-Encoding: 7bit", "@@")), "@@", qpBinary(z), 1)
			}},
		},
	))
}
