// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLock: a command waits for one that ends soon, as a killed one does when the last of its children
// executes its program, and refuses to work beside one that goes on.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := lock(t.Context(), "mll", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, "mll", path); err == nil || !strings.Contains(err.Error(), "by another command") {
		t.Fatalf("two commands hold the lock: error %v", err)
	}
	time.AfterFunc(100*time.Millisecond, first)
	second, err := lock(t.Context(), "mll", path)
	if err != nil {
		t.Fatal(err)
	}
	second()
}
