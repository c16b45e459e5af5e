#include "gsp_py.h"

PyMethodDef gsp_py_masks_methods[] = {{NULL, NULL, 0, NULL}};
