#include "gsp_py.h"

PyMethodDef gsp_py_matrices_methods[] = {{NULL, NULL, 0, NULL}};
