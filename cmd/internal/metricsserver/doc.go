// SPDX-License-Identifier: Apache-2.0

// Package metricsserver has the flags of the server that shows a program's metrics. It is a package of its
// own because the authentication and authorization of requests bring much of Kubernetes' API server
// with them (30 MB of program, 8 MB of memory): only programs that show metrics link it.
package metricsserver
