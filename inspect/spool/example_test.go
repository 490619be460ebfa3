package spool_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"mailweir/inspect"
	"mailweir/inspect/spool"
)

func Example() {
	dir, _ := os.MkdirTemp("", "example")
	defer os.RemoveAll(dir)
	pool, err := spool.New(spool.Config{Dir: dir})
	if err != nil {
		fmt.Println(err)
		return
	}

	f := pool.Create()
	defer f.Close()
	if _, err := io.Copy(f, strings.NewReader("Subject: hello\r\n\r\nhi\r\n")); errors.Is(err, spool.ErrQuota) {
		fmt.Println("452 4.3.1 Insufficient system storage")
		return
	}
	msg := inspect.Message{Body: f}
	fmt.Println(msg.Body.Size(), "octets at rest")
	// Output: 22 octets at rest
}
